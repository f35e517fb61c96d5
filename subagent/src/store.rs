//! What is kept about tasks, in `<git common dir>/pi-subagent`: it survives the container and is never committed. One
//! folder for each task, a state file that is replaced as a whole, and file locks. Touches nothing outside that folder.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::failure::{Code, Failure, OrFail, Result};
use crate::report::{AgentEnd, Outcome, PrInfo, Stage, Usage};
use crate::sys;
use crate::task::{Spec, TaskName};

/// A task as it stands on disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct State {
    pub(crate) v: u32,
    pub(crate) task: TaskName,
    pub(crate) run: String,
    pub(crate) attempt: u32,
    pub(crate) stage: Stage,
    /// How the last run ended; none while one is under way, or if it was cut off.
    pub(crate) outcome: Option<Outcome>,
    /// Why the agent did not come to its end, in a sentence.
    #[serde(default)]
    pub(crate) trouble: Option<String>,
    pub(crate) branch: String,
    pub(crate) base: String,
    pub(crate) base_oid: String,
    /// Relative to the repository's root.
    pub(crate) worktree: String,
    /// The worktree was whole once: from then on it may hold work.
    pub(crate) ready: bool,
    pub(crate) session: String,
    pub(crate) owner: Owner,
    pub(crate) spec: Spec,
    pub(crate) pushed: Option<String>,
    pub(crate) pr: Option<PrInfo>,
    pub(crate) agent: Option<AgentEnd>,
    pub(crate) summary: String,
    pub(crate) usage: Usage,
    /// Milliseconds since 1970.
    pub(crate) created_at: u64,
    pub(crate) updated_at: u64,
}

/// Who runs the task, said so that another process, also in another container, can tell whether it still does.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Owner {
    pub(crate) host: String,
    pub(crate) boot_id: String,
    pub(crate) namespace: String,
    pub(crate) pid: u32,
    pub(crate) pid_start: u64,
    /// Milliseconds since 1970.
    pub(crate) heartbeat: u64,
}

/// An owner on another machine that has not been heard of for so long is dead.
const HEARTBEAT_LIMIT: u64 = 60_000;

impl Owner {
    pub(crate) fn me() -> Self {
        let (boot_id, namespace) = sys::machine();
        let pid = std::process::id();
        let pid_start = sys::start_of(pid).unwrap_or(0);
        Owner { host: sys::host_name(), boot_id, namespace, pid, pid_start, heartbeat: now() }
    }

    /// For a task whose run lock is free. On the same kernel a free lock says enough, where locks work at all; so ask for the
    /// process as well where it can be seen. From another machine there is only the heartbeat.
    fn alive_without_lock(&self) -> bool {
        let (boot_id, namespace) = sys::machine();
        if self.boot_id != boot_id {
            return now().saturating_sub(self.heartbeat) < HEARTBEAT_LIMIT;
        }
        self.namespace == namespace && self.pid != 0 && sys::start_of(self.pid) == Some(self.pid_start)
    }
}

/// A lock that ends with the value, or with the process.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    fn open(path: &Path) -> Result<File> {
        OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)
            .or_fail(Code::Setup, || format!("cannot open '{}'", path.display()))
    }

    /// Takes the lock if nobody has it.
    pub(crate) fn try_take(path: &Path) -> Result<Option<Lock>> {
        let file = Lock::open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock { _file: file })),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => {
                Err(error).or_fail(Code::Setup, || format!("cannot lock '{}'", path.display()))
            }
        }
    }

    /// Waits for the lock, at most so long.
    pub(crate) async fn take(path: &Path, patience: Duration) -> Result<Lock> {
        let started = Instant::now();
        loop {
            if let Some(lock) = Lock::try_take(path)? {
                return Ok(lock);
            }
            if started.elapsed() > patience {
                return Err(Failure::new(
                    Code::Busy,
                    format!("cannot lock '{}': another process has it", path.display()),
                ));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// The folder of all tasks.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    dir: PathBuf,
}

impl Store {
    /// `common` is the repository's common git directory.
    pub(crate) fn open(common: &Path) -> Self {
        Store { dir: common.join("pi-subagent") }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Held while branches, worktrees and their administration change.
    pub(crate) async fn repository_lock(&self) -> Result<Lock> {
        make_dir(&self.dir)?;
        Lock::take(&self.dir.join("repo.lock"), Duration::from_secs(120)).await
    }

    pub(crate) fn task(&self, name: &TaskName) -> TaskDir {
        TaskDir { name: name.clone(), dir: self.dir.join("tasks").join(name.as_str()) }
    }

    /// Says that there is no such task, and which there are.
    pub(crate) fn unknown(&self, name: &TaskName) -> Failure {
        const SHOWN: usize = 10;
        let tasks: Vec<String> = self.tasks().unwrap_or_default().iter().map(|dir| dir.name.to_string()).collect();
        let hint = match tasks.len() {
            0 => "there are no tasks here".to_owned(),
            1..=SHOWN => format!("there are: {}", tasks.join(", ")),
            all => format!("there are {all}, see them with: pi-subagent list"),
        };
        Failure::new(Code::NoTask, format!("there is no task '{name}'")).hint(hint)
    }

    /// Every task that has a folder, by name.
    pub(crate) fn tasks(&self) -> Result<Vec<TaskDir>> {
        let dir = self.dir.join("tasks");
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).or_fail(Code::Internal, || format!("cannot read '{}'", dir.display())),
        };
        let mut names: Vec<TaskName> =
            entries.flatten().filter_map(|entry| TaskName::parse(entry.file_name().to_str()?).ok()).collect();
        names.sort();
        Ok(names.iter().map(|name| self.task(name)).collect())
    }
}

/// One task's folder.
#[derive(Clone, Debug)]
pub(crate) struct TaskDir {
    pub(crate) name: TaskName,
    dir: PathBuf,
}

impl TaskDir {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(crate) fn create(&self) -> Result<()> {
        make_dir(&self.dir)
    }

    /// Takes the task for this process. None if someone else runs it, here or on another machine.
    pub(crate) fn claim(&self) -> Result<Option<Lock>> {
        self.create()?;
        let Some(lock) = Lock::try_take(&self.path("run.lock"))? else { return Ok(None) };
        let abandoned = self.load()?.is_none_or(|state| state.outcome.is_some() || !state.owner.alive_without_lock());
        Ok(abandoned.then_some(lock))
    }

    /// Whether a process is working on it now.
    pub(crate) fn live(&self, state: &State) -> bool {
        if state.outcome.is_some() {
            return false;
        }
        match Lock::try_take(&self.path("run.lock")) {
            Ok(Some(_lock)) => state.owner.alive_without_lock(),
            Ok(None) | Err(_) => true,
        }
    }

    /// The state, none if the task was never started.
    pub(crate) fn load(&self) -> Result<Option<State>> {
        let path = self.path("state.json");
        match sys::read_file(&path) {
            Ok(bytes) => {
                let understood = serde_json::from_slice::<State>(&bytes);
                let mut state =
                    understood.or_fail(Code::Internal, || format!("cannot understand '{}'", path.display()))?;
                let beat = fs::metadata(&path).and_then(|meta| meta.modified()).map_or(0, millis);
                state.owner.heartbeat = state.owner.heartbeat.max(beat);
                Ok(Some(state))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).or_fail(Code::Internal, || format!("cannot read '{}'", path.display())),
        }
    }

    /// Replaces the state: after a crash there is the old one or the new one.
    pub(crate) fn save(&self, state: &mut State) -> Result<()> {
        state.updated_at = now();
        state.owner.heartbeat = state.updated_at;
        let bytes =
            serde_json::to_vec_pretty(state).or_fail(Code::Internal, || "cannot write the task's state".into())?;
        self.replace("state.json", &bytes, true)
    }

    /// A sign of life, without rewriting anything.
    pub(crate) fn beat(&self) {
        let _ = File::open(self.path("state.json")).and_then(|file| file.set_modified(SystemTime::now()));
    }

    /// Writes a file of the task as a whole, private. One that is made anew for each run need not outlive the machine.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.replace(name, bytes, false)
    }

    /// `lasting`: it is on the disk when this returns.
    fn replace(&self, name: &str, bytes: &[u8], lasting: bool) -> Result<()> {
        let path = self.path(name);
        let write = || -> std::io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(&self.dir)?;
            file.write_all(bytes)?;
            if lasting {
                file.as_file().sync_all()?;
            }
            file.persist(&path).map_err(|error| error.error)?;
            if lasting { File::open(&self.dir)?.sync_all() } else { Ok(()) }
        };
        write().or_fail(Code::Setup, || format!("cannot write '{}'", path.display()))
    }

    /// Forgets the task. Only for one whose work is safe elsewhere.
    pub(crate) fn remove(&self) -> Result<()> {
        fs::remove_dir_all(&self.dir).or_fail(Code::Internal, || format!("cannot remove '{}'", self.dir.display()))
    }
}

/// Makes a private folder and what is above it.
pub(crate) fn make_dir(dir: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .or_fail(Code::Setup, || format!("cannot create '{}'", dir.display()))
}

/// Milliseconds since 1970.
pub(crate) fn now() -> u64 {
    millis(SystemTime::now())
}

fn millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map(|time| time.as_millis() as u64).unwrap_or(0)
}
