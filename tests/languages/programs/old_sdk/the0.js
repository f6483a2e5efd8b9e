// A copy of its own, under node_modules/@the0/sdk: state written in place, millisecond timestamps, answers in chunks.
const fs = require("fs");
const http = require("http");
const path = require("path");

console.log("a the0 of its own");
const handlers = new Map();
const say = (line) => console.log(JSON.stringify(line));
const fileOf = (key) => path.join(process.env.STATE_DIR, `${key}.json`);

exports.parse = () => ({ botId: process.env.BOT_ID, config: JSON.parse(process.env.BOT_CONFIG) });
exports.log = (message, level = "info") => say({ timestamp: Date.now(), level, message });
exports.metric = (kind, value) => say({ _metric: kind, value, timestamp: Date.now() });
exports.getState = (key, otherwise) =>
  fs.existsSync(fileOf(key)) ? JSON.parse(fs.readFileSync(fileOf(key), "utf8")) : otherwise;
exports.setState = (key, value) => {
  if (process.env.QUERY_PATH !== undefined) throw new Error("state is read-only in a query");
  fs.mkdirSync(process.env.STATE_DIR, { recursive: true });
  fs.writeFileSync(fileOf(key), JSON.stringify(value));
};
exports.handler = (name, handle) => handlers.set(name, handle);

function answer(name, params) {
  if (!handlers.has(name)) return { status: "error", error: `No handler for path: ${name}` };
  try {
    return { status: "ok", data: handlers.get(name)(params) };
  } catch (failure) {
    return { status: "error", error: failure.message };
  }
}

exports.run = () => {
  if (process.env.QUERY_PATH !== undefined) {
    const told = answer(process.env.QUERY_PATH, JSON.parse(process.env.QUERY_PARAMS || "{}"));
    fs.mkdirSync("/query", { recursive: true });
    fs.writeFileSync("/query/result.json", JSON.stringify(told));
    return;
  }
  http
    .createServer((request, response) => {
      const asked = new URL(request.url, "http://bot");
      const told = JSON.stringify(answer(asked.pathname, Object.fromEntries(asked.searchParams)));
      response.writeHead(200, { "Content-Type": "application/json" });
      response.write(told.slice(0, 10)); // without a length: in chunks
      response.end(told.slice(10));
    })
    .listen(Number(process.env.THE0_QUERY_PORT || 9476), "0.0.0.0");
};
