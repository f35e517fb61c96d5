//! What follows the options in the help of each command: how it is used, in examples, and what else there is to know.

pub(crate) const SESSION: &str = "\
Everything from the first word that is not one of these options goes to pi unchanged, and pi's exit status comes back.

Examples:
  pi-docker                              pi, in the folder you are in
  pi-docker \"refactor the auth module\"   pi, with a first prompt
  pi-docker --yes -p \"add unit tests\"    no questions, no terminal: pi answers and ends
  pi-docker --continue                   pi's own option: the last session of this repository
  pi-docker -- doctor                    a word that is also a command of pi-docker, sent to pi

Settings are variables, or keys in config.toml in pi-docker's own folder; README.md has them all.
`pi-docker help COMMAND` has more on each command.";

pub(crate) const AUTH: &str = "\
The container has no repository, no proxy and no tools; it ends by itself after three minutes. The browser's answer comes in on port \
53692 of this machine's loopback, and nowhere else. If your browser is on another machine, paste the address that it ends at into pi.

The login is saved in ~/.pi/agent/auth.json, for you alone to read, and the next session takes it along. The end of that session \
empties the file, unless --keep-auth or `keep-auth` in config.toml says otherwise.

Examples:
  pi-docker auth                   pi opens: type /login and choose
  pi-docker auth anthropic         Claude Pro or Max, straight away
  pi-docker auth github-copilot    a GitHub Copilot subscription

Exit status: that of pi. What has arrived is said at the end.";

pub(crate) const MODELS: &str = "\
Examples:
  pi-docker models ollama enable    connect sessions to the Ollama server on this machine
  pi-docker models status           what is connected, and what pi offers of it

`pi-docker models ollama --help` has more.

Exit status: 0 if it is done; 1 if not, and nothing was changed.";

pub(crate) const MODELS_STATUS: &str = "\
Three lines at most: the server that sessions are connected to, whether it answers now and with which version, and the models of it that \
pi offers. It changes nothing.

Examples:
  pi-docker models status

Exit status: 0, whether a server is connected or not.";

pub(crate) const OLLAMA: &str = "\
pi reaches the server through the session's proxy, which lets inference through and nothing else: a session can neither pull nor \
create nor delete a model. The connection is kept in docker-compose.override.yml, squid-local.conf and models.json in pi-docker's \
own folder; your ~/.pi/agent/models.json is never written. Changes count from the next session on.

Examples:
  pi-docker models ollama enable                       the server on this machine, and all of its models
  pi-docker models ollama enable --host 192.168.1.100  one on another machine
  pi-docker models ollama sync                         after `ollama pull` or `ollama rm`
  pi-docker models ollama remove codellama:34b         offer one model less; the server keeps it
  pi-docker models ollama disable                      remove what `enable` made, and only that

A server that listens on loopback only cannot be reached from a container; `enable` says so, and which address it needs.

Exit status: 0 if it is done; 1 if not, and nothing was changed.";

pub(crate) const OLLAMA_ENABLE: &str = "\
Asks the server for its version and its models, then writes docker-compose.override.yml, squid-local.conf and models.json in pi-docker's own \
folder. An override of your own is not written over. Done again, it takes the other server, or the models that have come; what you have \
written about a model in that models.json stays. Without --host it is the server on this machine, at the address that containers have for it.

Examples:
  pi-docker models ollama enable
  pi-docker models ollama enable --host gpu.lan          port 11434, Ollama's own
  pi-docker models ollama enable --host 10.0.0.9:8080

Exit status: 0 if sessions are connected; 1 if the server does not answer or no container can reach it, and nothing was changed.";

pub(crate) const OLLAMA_DISABLE: &str = "\
Removes docker-compose.override.yml and squid-local.conf if `enable` wrote them, and the server's part of models.json in pi-docker's own folder. \
What else you have in these is left. The server and its models are not touched; sessions that run stay connected.

Examples:
  pi-docker models ollama disable

Exit status: 0, also if no server was connected.";

pub(crate) const OLLAMA_LIST: &str = "\
One line for each model: `*` is in front of those that pi offers, `!` of one that pi offers and the server has no longer. It asks the server that \
is connected, else the one on this machine, and changes nothing.

Examples:
  pi-docker models ollama list
  pi-docker models ollama list | sed -n 's/^[*] //p'     those that pi offers, by name

Exit status: 1 if the server does not answer.";

pub(crate) const OLLAMA_SYNC: &str = "\
Rewrites the server's part of models.json in pi-docker's own folder: a model that is new comes in, also one that you had removed from the offer, and one \
that is gone goes. Needs a server that is connected and answers.

Examples:
  ollama pull qwen3:8b && pi-docker models ollama sync

Exit status: 1 if no server is connected or it does not answer, and nothing was changed.";

pub(crate) const OLLAMA_ADD: &str = "\
Adds to the server's part of models.json in pi-docker's own folder. The server must have the model; a name without a tag means `:latest`, as with Ollama. \
One that pi offers already is no error.

Examples:
  pi-docker models ollama add codellama:34b
  pi-docker models ollama add llama3.2 qwen3:8b

Exit status: 1 if one of them is not there, and none was added.";

pub(crate) const OLLAMA_REMOVE: &str = "\
Takes models out of models.json in pi-docker's own folder. The server keeps them, and `add` or `sync` brings them back.

Examples:
  pi-docker models ollama remove codellama:34b

Exit status: 1 if pi does not offer one of them, and none was removed.";

pub(crate) const DOCTOR: &str = "\
Each line is ok, a warning or failed; what is not ok is followed by its fix. To look at the network and at the token it starts a \
session that has no repository and no login, and takes it away again: the container tries to reach this machine and an outside name, \
and asks GitHub what the token may do on this repository, by requests that change nothing.

Examples:
  pi-docker doctor
  pi-docker doctor --json | jq '.findings[] | select(.grade != \"ok\")'

Exit status: 1 if something would keep a session from working, 0 otherwise.";

pub(crate) const ALLOW: &str = "\
A name is a host (`example.com`) or, with a leading dot, a host and everything below it (`.example.com`). Only TLS on port 443 \
goes out, whatever is allowed. Sessions that run follow within a second and go on.

The names are kept in allow.txt in pi-docker's own folder, with --here in the state of the repository. A file in the repository is \
never read, for the agent could write it. A shipped name that you remove stays away: it is kept as `!name`.

Examples:
  pi-docker allow proxy.golang.org sum.golang.org
  pi-docker allow --here .example.com       only for the repository you are in
  pi-docker allow --remove .npmjs.org
  pi-docker allow --list                    everything that is in force here
  pi-docker denied                          what was refused, with the command for each

Exit status: 0 if the list is as asked for, and in force in every session that it concerns.";

pub(crate) const DENIED: &str = "\
What was refused is kept after a session's end, in denied.log in pi-docker's own folder, up to a size. A host that is not on the list \
comes with the command that allows it; what no list can allow (a port other than 443, an address, plain HTTP) says why, and so does \
a host that is listed and cannot be reached.

Examples:
  pi-docker denied           by host, the last one last
  pi-docker denied -f        each as it happens, until the sessions end or Ctrl-C
  pi-docker denied --all     of every repository";

pub(crate) const STATUS: &str = "\
What the subagents do is asked of pi-subagent in each container: state, age, cost and pull request. A session that does not answer \
within ten seconds is listed without them.

Examples:
  pi-docker status
  pi-docker status --json | jq -r '.sessions[].project'";

pub(crate) const LOGS: &str = "\
Without a name it is the repository you are in that is asked about; with one, as `pi-docker status` prints it, you may be anywhere, and the session \
has to run. \
What pi itself shows is for your terminal and is kept nowhere but in pi's own sessions. What the proxy did is in `docker compose logs \
proxy`, with the project's name; README.md has the whole command.

Examples:
  pi-docker logs
  pi-docker logs -f                         until the session ends or Ctrl-C
  pi-docker logs pi-my-project-3f2a90c1     one of those that run, from anywhere

Exit status: 1 if there is no such session.";

pub(crate) const REPORT: &str = "\
It names the files that changed and that tools on this machine run by themselves, files that have a second name outside of the \
repository, the hosts that were reached or refused, with bytes, and the commits. Read them before you run what the agent wrote.

Examples:
  pi-docker report
  pi-docker report --json | jq

Exit status: 1 if no session of this repository has ended yet.";

pub(crate) const VERIFY: &str = "\
It starts a session that has no repository, no login and no token, tries the attacks of docs/security.md in it, and takes it away \
again; that takes about ten seconds. What was not tried says why.

Examples:
  pi-docker verify
  pi-docker verify --json | jq

Exit status: 1 if an attack succeeded, or the session did not start.";

pub(crate) const FETCH: &str = "\
The agent commits into a git directory of its own, and its commits come into yours at the end of a session. This brings over what is \
there now, in the same way: branches that can be fast-forwarded are, the rest is kept below refs/pi/ and said.

Examples:
  pi-docker fetch && git log --oneline -3";

pub(crate) const STOP: &str = "\
pi gets the time to save its session; then the login is wiped, commits are fetched and everything of the session is removed. The \
command returns when that is done.

Examples:
  pi-docker stop
  pi-docker stop --all       those of every repository, and logins

What a session has left whose launcher was killed is cleaned up, too.

Exit status: 1 if there was no session, or something of it is still there.";

pub(crate) const COMPLETIONS: &str = "\
Examples:
  pi-docker completions bash > ~/.local/share/bash-completion/completions/pi-docker
  pi-docker completions zsh > ~/.zfunc/_pi-docker       (a folder of your $fpath)
  pi-docker completions fish > ~/.config/fish/completions/pi-docker.fish";
