// A realtime bot: follows a price, remembers its moving average, and says when the price crosses it.
const { loadState, log, metric, saveState } = require("./sdk");

const priceAt = (moment) => 100 + 8 * Math.sin(moment / 7200) + 2 * Math.sin(moment / 3); // stands for a market

exports.main = async (botId, config) => {
  const { symbol = "AAPL", window = 20, every_ms: everyMs = 1000 } = config;
  const state = loadState("watcher", { prices: [], ticks: 0, above: null });
  log(`${botId} begins with ${state.ticks} ticks behind it`);

  let stopped = false;
  let wake = () => {};
  process.on("SIGTERM", () => {
    stopped = true;
    wake();
  });

  while (!stopped) {
    const price = priceAt(Date.now() / 1000);
    state.prices = [...state.prices, price].slice(-window);
    state.ticks += 1;
    const average = state.prices.reduce((sum, each) => sum + each, 0) / state.prices.length;
    const above = price > average;
    if (state.above !== null && above !== state.above) {
      log(`${symbol} is now ${above ? "above" : "below"} its average`, { price, average });
    }
    state.above = above;
    saveState("watcher", state);
    metric("price", { symbol, price, average });
    await new Promise((done) => {
      wake = done;
      setTimeout(done, everyMs);
    });
  }
  return { status: "success", message: `watched ${state.ticks} ticks` };
};
