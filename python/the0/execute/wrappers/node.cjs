// Runs a Node bot: `node node.cjs WORD_FD CODE_PATH ENTRYPOINT`, its environment is the bot's.
//
// Started before the bot's code is there: loads what it needs of Node, waits on WORD_FD for one byte, and only then opens
// anything below CODE_PATH. Then it loads ENTRYPOINT, calls its `main(bot_id, config)` if it has one, awaits what that
// returns, writes `<CODE_PATH>/result.json` unless the bot did, and ends the process, whatever is still open.
"use strict";

const fs = require("node:fs");
const path = require("node:path");
const util = require("node:util");

const MESSAGE_CHARACTERS = 10_000;
const FLUSH_MS = 5_000; // how long the last words wait for a reader that does not read
const NEVER_SETTLES = 13; // as Node itself has it for a top-level await

const [wordFd, codePath, entrypoint] = [Number(process.argv[2]), process.argv[3], process.argv[4]];
const entry = path.join(codePath, entrypoint);
const resultPath = path.join(codePath, "result.json");
const bot = {
  result: null, // what is written at the end, once it is known
  ending: false,
  pending: false, // main was called and has not settled
  drained: false, // nothing is left that could wake the process
  without: false, // it has no main
};

function waitForWord(fd) {
  if (fs.readSync(fd, Buffer.alloc(1)) === 0) process.exit(0);
  fs.closeSync(fd);
}

/** Makes printing wait for the pipe: else what is printed just before `process.exit` is lost, and a flood fills the memory. */
function printAtOnce() {
  for (const stream of [process.stdout, process.stderr]) stream._handle?.setBlocking?.(true);
}

// --- the request to stop ---------------------------------------------------------------------------

// A listener rather than the signal's own effect: it runs between two turns of the bot's code, so that nothing which
// the bot writes in one go is cut short. It stands back while the bot has a listener of its own.
let botListens = false;

function terminate() {
  if (!botListens) end({ status: "terminated", message: "The bot was asked to stop." }, 0);
}

function watchSigterm() {
  const listeners = process.listeners;
  const others = () => listeners.call(process, "SIGTERM").filter((each) => each !== terminate);
  process.on("SIGTERM", terminate);
  process.on("newListener", (event, listener) => {
    if (event === "SIGTERM" && listener !== terminate) botListens = true;
  });
  process.on("removeListener", (event) => {
    if (event !== "SIGTERM") return;
    // Later: a listener for one time is removed just before it is called.
    setImmediate(() => {
      botListens = others().length > 0;
      if (!listeners.call(process, "SIGTERM").includes(terminate)) process.on("SIGTERM", terminate);
    }).unref();
  });
  // Libraries that clean up at a signal look whether they are alone with it, and only then let it end the process.
  process.listeners = function (event) {
    return event === "SIGTERM" ? others() : listeners.call(this, event);
  };
}

// --- the bot's code --------------------------------------------------------------------------------

async function load() {
  if (isModule()) return import(fileUrl());
  try {
    return require(entry);
  } catch (failure) {
    // Module syntax in a plain .js: newer Nodes find that out themselves, and refuse a top-level await. A file that
    // is CommonJS has begun to run by now, and must not run twice.
    if (!["ERR_REQUIRE_ESM", "ERR_REQUIRE_ASYNC_MODULE"].includes(failure?.code) || isCommonJs()) throw failure;
    return import(fileUrl());
  }
}

function fileUrl() {
  return require("node:url").pathToFileURL(entry).href;
}

function isModule() {
  const suffix = path.extname(entry);
  if (suffix !== ".js") return suffix === ".mjs";
  for (let folder = path.dirname(entry); ; folder = path.dirname(folder)) {
    try {
      return JSON.parse(fs.readFileSync(path.join(folder, "package.json"), "utf8")).type === "module";
    } catch (failure) {
      if (failure.code !== "ENOENT" || folder === path.dirname(folder)) return false; // Node says what is wrong with it
    }
  }
}

function isCommonJs() {
  try {
    new (require("node:vm").Script)(require("node:module").wrap(fs.readFileSync(entry, "utf8")));
    return true;
  } catch {
    return false;
  }
}

function mainOf(loaded) {
  const candidates = [loaded?.main, loaded?.default?.main, loaded?.default, loaded];
  return candidates.find((each) => typeof each === "function");
}

/** Where BOT_CONFIG was too large for a variable it is in a file; code that looks for the variable finds it, too. */
function readConfigFile() {
  const file = process.env.BOT_CONFIG_FILE;
  if (!file || process.env.BOT_CONFIG !== undefined) return;
  const value = fs.readFileSync(file, "utf8");
  // Behind the environment, not in it: no program could be started with so large a one.
  const behind = Object.create(Object.getPrototypeOf(process.env), { BOT_CONFIG: { value, configurable: true } });
  Object.setPrototypeOf(process.env, behind);
}

async function run() {
  readConfigFile();
  const main = mainOf(await load());
  if (main === undefined) {
    bot.without = true; // it has run; what it left open goes on, as with `node FILE`
    return;
  }
  bot.pending = true;
  const returned = await main(process.env.BOT_ID, JSON.parse(process.env.BOT_CONFIG));
  bot.pending = false;
  const plain = typeof returned === "object" && returned !== null && !Array.isArray(returned);
  // Through JSON now, where a result that JSON cannot hold is still the bot's failure.
  await end(plain ? { ...success(), ...JSON.parse(JSON.stringify(returned)) } : null);
}

// --- its end ---------------------------------------------------------------------------------------

function success() {
  const message = bot.without
    ? "The file was run to its end: it exports no main(bot_id, config) that could be called."
    : "The bot has ended.";
  return { status: "success", message };
}

function failed(failure) {
  let message;
  try {
    message = failure instanceof Error ? `${failure.name}: ${failure.message}` : String(failure);
    message = withoutUs(message).slice(0, MESSAGE_CHARACTERS);
    const advice = remedy(failure);
    if (advice) message = `${message.split("\n")[0]}. ${advice}`;
  } catch {
    message = "The bot failed with something that cannot be shown.";
  }
  return { status: "error", message };
}

/** What to do about a module that is missing; "" for all other failures. */
function remedy(failure) {
  if (!["MODULE_NOT_FOUND", "ERR_MODULE_NOT_FOUND"].includes(failure?.code)) return "";
  const wanted = /^Cannot find (?:module|package) '([^']+)'/.exec(failure.message)?.[1];
  if (wanted === undefined) return "";
  if (/^(\.|\/|file:)/.test(wanted)) {
    return "No such file is among the bot's: correct its name, or put it into the bot's folder, and deploy again.";
  }
  const name = wanted.split("/", wanted.startsWith("@") ? 2 : 1).join("/");
  return `The bot's archive does not bring '${name}' along: run npm install ${name} in the bot's folder, and deploy again.`;
}

function withoutUs(text) {
  return text
    .split("\n")
    .filter((line) => !line.includes(__filename))
    .join("\n");
}

function show(failure) {
  const advice = remedy(failure);
  process.stderr.write(`${withoutUs(util.inspect(failure))}\n${advice ? `${advice}\n` : ""}`);
}

/** Ends the process once what was printed has left it. Without a code: 0, or what the bot put into process.exitCode. */
async function end(result, code) {
  if (bot.ending) return;
  bot.ending = true;
  bot.result ??= result;
  bot.pending = false;
  const exit = () => (code === undefined ? process.exit() : process.exit(code));
  const late = setTimeout(exit, FLUSH_MS);
  for (const stream of [process.stdout, process.stderr]) {
    if (stream.writableLength > 0) await new Promise((done) => stream.write("", done));
  }
  clearTimeout(late);
  exit();
}

function atExit(code) {
  if (bot.pending && bot.drained && code === 0) {
    const message = "main waits for something that can never happen: nothing is left that could wake the bot.";
    process.stderr.write(`${message}\n`);
    bot.result = { status: "error", message };
    process.exitCode = NEVER_SETTLES;
  }
  writeResult(
    bot.result ?? (code === 0 ? success() : { status: "error", message: `The bot ended with exit code ${code}.` }),
  );
}

function removeFormer() {
  try {
    fs.unlinkSync(resultPath);
  } catch {
    // there is none, or it is not ours to remove; then the bot's word stands
  }
}

function writeResult(result) {
  if (fs.lstatSync(resultPath, { throwIfNoEntry: false }) !== undefined) return;
  const temporary = `${resultPath}.${process.pid}.tmp`;
  try {
    fs.writeFileSync(temporary, JSON.stringify(result), { flag: "wx" });
    fs.renameSync(temporary, resultPath);
  } catch (failure) {
    process.stderr.write(`${resultPath} cannot be written: ${failure.message}\n`);
  }
}

function start() {
  watchSigterm();
  printAtOnce();
  waitForWord(wordFd);
  process.argv.splice(1, 4, entry);
  removeFormer();
  process.on("exit", atExit);
  process.on("beforeExit", () => (bot.drained = true));
  // What nobody catches is shown by Node itself, and ends the process with its own code.
  process.on("uncaughtExceptionMonitor", (failure) => {
    if (process.listenerCount("uncaughtException") === 0) bot.result = failed(failure);
  });
  run().catch((failure) => {
    show(failure);
    return end(failed(failure), process.exitCode || 1);
  });
}

start();
