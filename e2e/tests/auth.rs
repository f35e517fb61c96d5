//! A login with the real pi: the provider is played, the browser is a curl beside it, and everything between is as shipped.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::docker::{docker, inspect, lines};
use e2e::launch::Launch;
use e2e::{SOON, World, wait_until};
use serde_json::{Value, json};

const PORT: u16 = 53692;

/// A machine where nobody has logged in yet, whose providers hand out `access` and its likes.
struct Desk {
    world: World,
    access: String,
    overlay: PathBuf,
    /// The port is one for the whole machine.
    _port: File,
}

impl Desk {
    fn new() -> Result<Self> {
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(std::env::temp_dir().join(format!("pi-docker-e2e-port-{PORT}-{}.lock", nix::unistd::getuid())))?;
        lock.lock().context("cannot wait for the port")?;
        let mut world = World::new("tools")?;
        let access = format!("sk-ant-oat01-{}", world.id);
        let oauth = json!({
            "anthropic": access, "refresh": format!("sk-ant-ort01-{}", world.id), "github": format!("gho_{}", world.id),
            "copilot": format!("tid={};exp=1;proxy-ep=proxy.individual.githubcopilot.com", world.id),
        });
        let keys = json!([access, world.key]);
        world.change_scenario(|scenario| {
            scenario["oauth"] = oauth;
            scenario["anthropic"]["keys"] = keys;
        })?;
        let overlay = world.path("login.json");
        let text = json!({
            "services": { "pi": { "networks": { "internet": {} } } },
            "networks": { "internet": { "external": true, "name": world.internet.network() } },
        });
        fs::write(&overlay, text.to_string())?;
        world.user.own(&overlay)?;
        Ok(Self { world, access, overlay, _port: lock })
    }

    /// The command `auth`, with a way to the providers.
    fn auth(&self) -> Launch {
        let files = format!("{}:{}", self.world.path("overlay.json").display(), self.overlay.display());
        self.world.bare_pi_docker().without("ANTHROPIC_API_KEY").env("PI_DOCKER_COMPOSE_FILES", files).arg("auth")
    }

    /// Opens an address as a browser on the internet would; gives the status and where it leads.
    fn browse(&self, args: &[&str]) -> Result<(u16, String)> {
        let image = std::env::var("PI_DOCKER_IMAGE").unwrap_or_else(|_| "pi-docker-agent:latest".into());
        let ca = format!("--volume={}:/ca.pem:ro", self.world.path("ca.pem").display());
        let network = format!("--network={}", self.world.internet.network());
        let mut words = vec!["run", "--rm", &ca, &network, "--entrypoint=curl", &image];
        words.extend(["-sS", "--cacert", "/ca.pem", "-o", "/dev/null", "-w", "%{http_code} %{redirect_url}"]);
        words.extend(args);
        let said = docker(words)?;
        let (status, to) = said.trim().split_once(' ').unwrap_or((said.trim(), ""));
        Ok((status.parse()?, to.to_owned()))
    }

    fn login(&self) -> Result<Value> {
        let path = self.world.auth_json();
        assert_eq!(fs::metadata(&path)?.permissions().mode() & 0o777, 0o600);
        Ok(serde_json::from_slice(&fs::read(path)?)?)
    }

    /// The login's container, while it runs.
    fn container(&self) -> Result<String> {
        let run = wait_until("the login has a folder", SOON, || Ok(self.world.run_dirs()?.pop()))?;
        let session = run.file_name().context("a folder without a name")?.to_string_lossy().into_owned();
        Ok(format!("pi-login-{session}-agent"))
    }

    fn nothing_is_left(&self, container: &str) -> Result<()> {
        let project = container.trim_end_matches("-agent");
        assert_eq!(self.world.run_dirs()?, Vec::<PathBuf>::new());
        assert_eq!(lines(["ps", "-aq", "--filter", &format!("name={project}")])?, Vec::<String>::new());
        assert_eq!(lines(["network", "ls", "-q", "--filter", &format!("name={project}")])?, Vec::<String>::new());
        Ok(())
    }
}

/// Asks this machine's own port as a browser does that was sent there.
fn call_back(address: &str) -> Result<String> {
    let path = address.strip_prefix(&format!("http://localhost:{PORT}")).context("it leads elsewhere")?;
    let mut stream = TcpStream::connect(("127.0.0.1", PORT))?;
    stream.set_read_timeout(Some(SOON))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost:{PORT}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The first word on the screen that starts so.
fn word(screen: &str, start: &str) -> Result<String> {
    let word = screen.split_whitespace().find(|word| word.starts_with(start));
    Ok(word.with_context(|| format!("no '{start}' on the screen:\n{screen}"))?.to_owned())
}

#[test]
fn an_anthropic_login_comes_back_by_the_loopback_only_and_the_next_session_uses_it() -> Result<()> {
    let desk = Desk::new()?;
    let mut terminal = desk.auth().arg("anthropic").start_on_terminal()?;
    terminal.expect("or paste the authorization code", SOON)?;
    let container = desk.container()?;

    // What the container has: a login's files, the shipped defaults, and nothing of the repository.
    let facts = inspect(&container)?;
    let mounts = facts["Mounts"].as_array().context("no mounts")?;
    let targets: Vec<&str> = mounts.iter().filter_map(|mount| mount["Destination"].as_str()).collect();
    ensure!(
        targets.iter().all(|path| path.starts_with("/run/pi-docker/") || path.starts_with("/defaults/")),
        "{targets:?}"
    );
    ensure!(!facts.to_string().contains("3128"), "there is a proxy: {facts}");
    let published = facts["HostConfig"]["PortBindings"].clone();
    assert_eq!(published, json!({ "53692/tcp": [{ "HostIp": "127.0.0.1", "HostPort": "53692" }] }));
    let gateway = lines(["network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}"])?.remove(0);
    let outside: SocketAddr = format!("{gateway}:{PORT}").parse()?;
    assert!(TcpStream::connect_timeout(&outside, Duration::from_secs(3)).is_err(), "{outside} answers");

    let url = word(&terminal.screen(), "https://claude.ai/")?;
    let (status, back) = desk.browse(&[&url])?;
    assert_eq!(status, 302, "{url}");
    let wrong = call_back(&back.replace("state=", "state=x"))?;
    assert!(wrong.starts_with("HTTP/1.1 400"), "{wrong}");
    let right = call_back(&back)?;
    assert!(right.starts_with("HTTP/1.1 200") && right.contains("Signed in"), "{right}");
    terminal.expect("logged in: anthropic", SOON)?;
    assert_eq!(terminal.finish(SOON)?.code(), Some(0));
    assert_eq!(desk.login()?["anthropic"]["access"], desk.access);
    desk.nothing_is_left(&container)?;

    let ran = desk.world.pi_docker().without("ANTHROPIC_API_KEY").args(["-p", "hello"]).run()?.expect(0)?;
    assert_eq!(ran.stdout.trim(), "hello");
    assert_eq!(fs::read_to_string(desk.world.auth_json())?, "{}");
    Ok(())
}

#[test]
fn a_github_copilot_login_is_completed_by_its_code_and_another_login_stays() -> Result<()> {
    let desk = Desk::new()?;
    desk.world.log_in_with_key()?;
    let mut terminal = desk.auth().arg("github-copilot").start_on_terminal()?;
    terminal.expect("GitHub Enterprise URL", SOON)?;
    terminal.type_in("\r")?;
    terminal.expect("ABCD-1234", SOON)?;
    let container = desk.container()?;
    let page = "https://github.com/login/device";
    assert!(terminal.screen().contains(page), "{}", terminal.screen());
    assert_eq!(desk.browse(&["--data", "user_code=WRNG-0000", page])?.0, 422);
    assert_eq!(desk.browse(&["--data", "user_code=ABCD-1234", page])?.0, 200);
    terminal.expect("logged in: ", SOON)?;
    assert_eq!(terminal.finish(SOON)?.code(), Some(0));
    assert!(terminal.screen().contains("github-copilot"), "{}", terminal.screen());
    let login = desk.login()?;
    assert_eq!(login["github-copilot"]["refresh"], format!("gho_{}", desk.world.id));
    assert_eq!(login["github-copilot"]["availableModelIds"], json!(["gpt-4.1"]));
    assert_eq!(login["anthropic"]["key"], desk.world.key);
    desk.nothing_is_left(&container)
}

#[test]
fn a_login_that_never_comes_ends_by_itself_and_changes_nothing() -> Result<()> {
    let desk = Desk::new()?;
    desk.world.log_in_with_key()?;
    let before = fs::read_to_string(desk.world.auth_json())?;
    let mut terminal = desk.auth().arg("anthropic").env("PI_DOCKER_AUTH_TIMEOUT", "4").start_on_terminal()?;
    let container = desk.container()?;
    terminal.expect("no new login has arrived", SOON)?;
    assert_ne!(terminal.finish(SOON)?.code(), Some(0));
    assert!(terminal.screen().contains("https://claude.ai/"), "{}", terminal.screen());
    assert_eq!(fs::read_to_string(desk.world.auth_json())?, before);
    desk.nothing_is_left(&container)
}

#[test]
fn a_login_needs_a_terminal_a_free_port_and_a_good_name_and_ends_with_its_window() -> Result<()> {
    let desk = Desk::new()?;
    let refused = |launch: Launch, why: &str| -> Result<()> {
        let mut terminal = launch.start_on_terminal()?;
        terminal.expect(why, SOON)?;
        assert_eq!(terminal.finish(SOON)?.code(), Some(1));
        assert_eq!(desk.world.run_dirs()?, Vec::<PathBuf>::new());
        Ok(())
    };
    let ran = desk.auth().run()?.expect(1)?;
    assert!(ran.stderr.contains("cannot log in: no terminal"), "{}", ran.stderr);
    refused(desk.auth().arg("Anthropic; id"), "cannot log in: a provider's name")?;
    let taken = TcpListener::bind(("127.0.0.1", PORT))?;
    refused(desk.auth(), "cannot use port 53692: something else listens on it")?;
    drop(taken);

    // Under its own name, and pi itself asks what to log in to.
    let mut terminal = desk.auth().start_on_terminal()?;
    // pi clears the screen: what to do there stays until it has been read, and nothing has been made meanwhile.
    terminal.expect("press Enter", SOON)?;
    assert!(terminal.screen().contains("type /login"), "{}", terminal.screen());
    assert_eq!(desk.world.run_dirs()?, Vec::<PathBuf>::new());
    terminal.type_in("\r")?;
    let container = desk.container()?;
    wait_until("it runs", SOON, || Ok(inspect(&container).is_ok_and(|c| c["State"]["Running"] == true).then_some(())))?;
    terminal.close();
    terminal.finish(SOON)?;
    desk.nothing_is_left(&container)
}
