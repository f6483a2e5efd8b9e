// Answers questions about the price: once where QUERY_PATH is set, else as a server beside the bot.
const fs = require("fs");
const http = require("http");
const { loadState } = require("./sdk");

const answers = {
  "/average": () => {
    const { prices, ticks } = loadState("watcher", { prices: [], ticks: 0 });
    const average = prices.length > 0 ? prices.reduce((sum, each) => sum + each, 0) / prices.length : null;
    return { ticks, average };
  },
};

function answer(target) {
  const path = target.split("?")[0];
  if (!(path in answers)) return { status: "error", error: `there is no query ${path}` };
  try {
    return { status: "ok", data: answers[path]() };
  } catch (failure) {
    return { status: "error", error: failure.message };
  }
}

if (process.env.QUERY_PATH !== undefined) {
  fs.writeFileSync("/query/result.json", JSON.stringify(answer(process.env.QUERY_PATH)));
} else {
  http
    .createServer((request, response) => {
      response.setHeader("Content-Type", "application/json");
      response.end(JSON.stringify(answer(request.url)));
    })
    .listen(Number(process.env.THE0_QUERY_PORT || 9476), "0.0.0.0");
}
