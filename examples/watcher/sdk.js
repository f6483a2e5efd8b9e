// The little that this bot needs of the platform: state as files, logs and metrics as lines of JSON.
const fs = require("fs");
const path = require("path");

const fileOf = (key) => path.join(process.env.STATE_DIR, `${key}.json`);

exports.loadState = (key, otherwise) => {
  try {
    return JSON.parse(fs.readFileSync(fileOf(key), "utf8"));
  } catch (failure) {
    if (failure.code === "ENOENT") return otherwise;
    throw failure;
  }
};

exports.saveState = (key, value) => {
  const file = fileOf(key);
  fs.mkdirSync(path.dirname(file), { recursive: true });
  fs.writeFileSync(`${file}.tmp`, JSON.stringify(value));
  fs.renameSync(`${file}.tmp`, file); // so that a reader finds the old value or the new one
};

const print = (stream, line) => stream.write(`${JSON.stringify({ ...line, timestamp: new Date().toISOString() })}\n`);

exports.log = (message, data = {}) => print(process.stderr, { level: "info", message, ...data });
exports.metric = (type, data) => print(process.stdout, { _metric: type, ...data });
