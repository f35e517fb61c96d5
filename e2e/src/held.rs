//! A session whose agent can be asked to try things, and the world around it.

use std::fs;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::launch::{Launch, Running};
use crate::session::Session;
use crate::{SOON, World, wait_until};

/// The extra CA in the agent's container, as curl takes it.
const CURL: &str = "curl -sS --max-time 8 --cacert /home/pi/.config/pi-docker/ca.pem -o /dev/null -w '%{http_code}'";

/// Opens a tunnel with a head of its own making, speaks TLS in it, and asks for a page. Takes `[[head, name in the greeting], …]`,
/// prints a line for each: the status of the answer, or 0.
const TUNNEL: &str = r#"
const net = require("net"), tls = require("tls");
const once = ([head, sni]) => new Promise((done) => {
  let status = 0;
  const raw = net.connect(3128, "proxy", () => raw.write(Buffer.from(head, "latin1")));
  const end = () => { raw.destroy(); done(status); };
  raw.setTimeout(6000, end); raw.on("error", end); raw.on("close", end);
  raw.once("data", (answer) => {
    if (!answer.toString("latin1").startsWith("HTTP/1.1 200 Connection")) {
      status = Number(answer.toString("latin1").split(" ")[1]) || 0;
      return end();
    }
    const name = sni === null ? undefined : sni;
    const secure = tls.connect({ socket: raw, servername: name, rejectUnauthorized: false }, () =>
      secure.write(`GET /user HTTP/1.1\r\nHost: ${sni}\r\nUser-Agent: probe\r\nConnection: close\r\n\r\n`));
    secure.on("error", end);
    secure.once("data", (page) => { status = Number(page.toString("latin1").split(" ")[1]) || 0; end(); });
  });
});
(async () => { for (const one of JSON.parse(process.argv[1])) console.log(await once(one)); })();
"#;

pub struct Held {
    /// Goes before its world.
    _run: Running,
    pub world: World,
    pub session: Session,
}

/// A line of a shipped file that is replaced: the file, what is there, what takes its place.
pub type Change<'a> = (&'a str, &'a str, &'a str);

impl Held {
    pub fn new() -> Result<Self> {
        Self::within(World::new("tools")?)
    }

    /// One session for all tests of this process that do not disturb each other in it. It ends with the last of them.
    pub fn shared() -> Result<Arc<Self>> {
        static SHARED: Mutex<Weak<Held>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = shared.upgrade() {
            return Ok(held);
        }
        let held = Arc::new(Self::new()?);
        *shared = Arc::downgrade(&held);
        Ok(held)
    }

    /// A session in a world where pi-docker's own files were changed.
    pub fn altered(changes: &[Change]) -> Result<Self> {
        Self::within(altered("tools", changes)?)
    }

    pub fn within(world: World) -> Result<Self> {
        let launch = world.pi_docker();
        Self::started(world, launch)
    }

    /// As `within`, with a launcher that was given more.
    pub fn started(world: World, launch: Launch) -> Result<Self> {
        let mut run = launch.args(["-p", "hold sh: env"]).start()?;
        run.until_asked(&world.internet, "held shell", 1)?;
        let session = world.wait_for_session()?;
        Ok(Self { _run: run, world, session })
    }

    /// Runs a script as the agent, which must succeed; what it printed.
    pub fn sh(&self, script: &str) -> Result<String> {
        let (succeeded, said) = self.session.sh(script)?;
        ensure!(succeeded, "'{script}' failed: {said}");
        Ok(said)
    }

    /// Whether a script succeeds as the agent.
    pub fn can(&self, script: &str) -> Result<bool> {
        Ok(self.session.sh(script)?.0)
    }

    /// Runs curl as the agent; the status of the HTTP answer, or 0 if there was none.
    pub fn curl(&self, args: &str) -> Result<u16> {
        let (_, said) = self.session.sh(&format!("{CURL} {args} 2>/dev/null"))?;
        said.trim().parse().with_context(|| format!("curl {args} said '{said}'"))
    }

    /// Opens tunnels with heads of the caller's making, each with the name for the TLS greeting; the status of each answer, or 0.
    pub fn tunnels(&self, attempts: &[(&str, &str)]) -> Result<Vec<u16>> {
        let attempts: Vec<Value> = attempts.iter().map(|(head, sni)| json!([head, sni])).collect();
        let command = format!("node -e {} {}", quoted(TUNNEL), quoted(&Value::from(attempts).to_string()));
        let said = self.sh(&command)?;
        said.lines().map(|line| line.trim().parse().with_context(|| format!("node said '{said}'"))).collect()
    }

    /// What this world's internet was asked for and should not have been, if `part` is in it.
    pub fn strays_of(&self, part: &str) -> Result<Vec<String>> {
        let strays = self.world.internet.strays()?.into_iter().map(|stray| format!("{} {}", stray.method, stray.host));
        Ok(strays.filter(|stray| stray.contains(part)).collect())
    }

    pub fn squid_says(&self, what: &str, wanted: impl Fn(&str) -> bool) -> Result<()> {
        let what = format!("squid has written {what}");
        wait_until(&what, SOON, || Ok(self.session.squid_log()?.iter().any(|line| wanted(line)).then_some(())))
    }
}

/// A word for a shell.
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// A world where pi-docker's own files were changed.
pub fn altered(scenario: &str, changes: &[Change]) -> Result<World> {
    World::altered(scenario, |dir| {
        for (file, old, new) in changes {
            let text = fs::read_to_string(dir.join(file))?;
            ensure!(text.contains(old), "'{old}' is not in {file}");
            fs::write(dir.join(file), text.replace(old, new))?;
        }
        Ok(())
    })
}
