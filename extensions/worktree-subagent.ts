// Gives pi the tool `spawn_subagent` and the commands around it. All of the work is `pi-subagent`'s: this file starts it,
// relays its JSON lines, and shows the texts that are in them. Plain JSON Schema and no imports of pi: one file for pi 0.87
// and later.
import { spawn } from "node:child_process";

type Event = { type: string; text?: string; [key: string]: any };
type Run = { code: number; last?: Event; stderr: string };

/** Runs pi-subagent; each JSON line of its output is an event. An abort is passed on as SIGTERM, and its result awaited. */
function run(args: string[], cwd: string, input = "", onEvent = (_: Event) => {}, signal?: AbortSignal): Promise<Run> {
  const child = spawn("pi-subagent", args, { cwd, stdio: ["pipe", "pipe", "pipe"] });
  const done: Run = { code: 1, stderr: "" };
  const decoder = new TextDecoder();
  let rest = "";
  child.stdin.on("error", () => {});
  child.stdin.end(input);
  child.stderr.on("data", (data) => (done.stderr = (done.stderr + data).slice(-4000)));
  child.stdout.on("data", (data) => {
    rest += decoder.decode(data, { stream: true });
    for (let end; (end = rest.indexOf("\n")) >= 0; rest = rest.slice(end + 1)) {
      try {
        done.last = JSON.parse(rest.slice(0, end)) as Event;
        onEvent(done.last);
      } catch {
        // A line that is no event is not for us.
      }
    }
  });
  const kill = () => child.kill("SIGTERM");
  signal?.addEventListener("abort", kill, { once: true });
  if (signal?.aborted) kill();
  return new Promise((resolve) => {
    const end = (code: number) => (signal?.removeEventListener("abort", kill), resolve({ ...done, code }));
    child.on("error", (error) => ((done.stderr += error.message), end(127)));
    child.on("close", (code) => end(code ?? 1));
  });
}

/** A run of a task, with its progress in the status line. */
async function task(args: string[], ctx: any, input = "", onEvent = (_: Event) => {}, signal?: AbortSignal): Promise<Event> {
  let key = "";
  const show = (event: Event) => {
    key ||= `subagent-${event.task}`;
    ctx.ui?.setStatus?.(key, event.type === "result" ? undefined : event.text);
    onEvent(event);
  };
  const { code, last, stderr } = await run(args, ctx.cwd, input, show, signal);
  if (key) ctx.ui?.setStatus?.(key, undefined);
  if (last?.type !== "result") throw new Error(`pi-subagent ended with ${code} and no result: ${stderr.trim()}`);
  return last;
}

/** The answer of a command that is not a run. */
async function ask(args: string[], ctx: any): Promise<Event> {
  const { last, stderr } = await run([...args, "--json"], ctx.cwd ?? process.cwd());
  return last ?? { type: "error", text: stderr.trim() };
}

const spec = {
  type: "object",
  required: ["task_name", "instructions"],
  additionalProperties: false,
  properties: {
    task_name: {
      type: "string",
      pattern: "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$",
      description: "Short name, also of the branch: lower-case letters, digits and dashes",
    },
    instructions: {
      type: "string",
      description: "Everything the subagent has to know: goal, files, limits, how to check. It does not see this conversation",
    },
    model: { type: "string", description: "provider/id; leave out for the model of this session" },
  },
};

export default function (pi: any) {
  if (Number(process.env.PI_SUBAGENT_DEPTH ?? 0) > 0) return;

  pi.registerTool({
    name: "spawn_subagent",
    label: "Spawn Subagent",
    description:
      "Runs a subagent on one self-contained task in a git worktree of its own, starting from the current commit. When it is " +
      "done, its work is committed and pushed and a pull request against the current branch is opened; the result names it. " +
      "Several calls in one message run in parallel.",
    promptSnippet: "spawn_subagent: do a self-contained task in an own git worktree and open a pull request",
    promptGuidelines: [
      "Use spawn_subagent for work that can be described whole and done alone; put parallel ones into one message.",
      "Commit what the subagent of spawn_subagent has to see before you call it.",
    ],
    exposure: "model-only",
    parameters: spec,
    async execute(_id: string, params: any, signal: AbortSignal | undefined, onUpdate: any, ctx: any) {
      if (signal?.aborted) throw new Error("cancelled before it started");
      const asked = {
        task: params.task_name,
        instructions: params.instructions,
        model: params.model ?? (ctx.model && `${ctx.model.provider}/${ctx.model.id}`),
        thinking: ctx.thinkingLevel ?? pi.getThinkingLevel?.(),
        trusted: ctx.isProjectTrusted?.() ?? false,
      };
      const update = (event: Event) => {
        if (event.type !== "result") onUpdate?.({ content: [{ type: "text", text: event.text }], details: event });
      };
      const result = await task(["spawn", "--json", "--spec", "-"], ctx, JSON.stringify(asked), update, signal);
      return { content: [{ type: "text", text: result.text }], details: result, usage: result.usage, isError: !result.ok };
    },
  });

  const say = (ctx: any, event: Event, bad = false) => ctx.ui.notify(event.text ?? "", bad ? "warning" : "info");
  const tasks = async (prefix: string) => {
    const found = (await ask(["list"], {})).tasks ?? [];
    const items = found.map((entry: any) => ({ value: entry.task, label: entry.task, description: entry.text }));
    const matching = items.filter((item: any) => item.value.startsWith(prefix));
    return matching.length ? matching : null;
  };

  pi.registerCommand("worktrees", {
    description: "List the subagents and their worktrees",
    handler: async (_: string, ctx: any) => say(ctx, await ask(["list"], ctx)),
  });
  pi.registerCommand("cleanup-worktree", {
    description: "Remove a subagent's worktree, if its work is pushed or merged",
    getArgumentCompletions: tasks,
    handler: async (args: string, ctx: any) => {
      const names = words(args);
      if (!names.length) return say(ctx, { text: "Usage: /cleanup-worktree NAME; /worktrees lists them" } as Event, true);
      say(ctx, await ask(["cleanup", ...names], ctx));
    },
  });
  pi.registerCommand("cleanup-all", {
    description: "Remove every worktree whose work is pushed or merged",
    handler: async (_: string, ctx: any) => {
      const plan = await ask(["cleanup", "--all", "--dry-run"], ctx);
      if (!plan.removable) return say(ctx, plan);
      if (await ctx.ui.confirm(plan.question, plan.text)) say(ctx, await ask(["cleanup", "--all"], ctx));
    },
  });
  pi.registerCommand("subagent-resume", {
    description: "Go on with a subagent that was stopped: NAME [what to do differently]",
    getArgumentCompletions: tasks,
    handler: async (args: string, ctx: any) => {
      const [name, ...more] = words(args);
      if (!name) return say(ctx, { text: "Usage: /subagent-resume NAME [what to do]; /worktrees lists them" } as Event, true);
      const input = more.length ? ["--instructions-file", "-"] : [];
      const result = await task(["resume", "--json", ...input, "--", name], ctx, more.join(" "));
      say(ctx, result, !result.ok);
    },
  });
  pi.on("session_start", async (_: any, ctx: any) => {
    const found = await ask(["recover"], ctx);
    if (found.recovered) say(ctx, found, true);
  });
}

const words = (text: string) => text.split(/\s+/).filter(Boolean);
