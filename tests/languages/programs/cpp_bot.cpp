// Counts its runs in `<STATE_DIR>/k.json`; `"mode"` in its configuration says how it goes on. Answers queries where it is the query
// entrypoint.
#include <iostream>
#include <stdexcept>
#include <string>
#include <thread>

#include "old_sdk/the0.hpp"

static long counted() {
    const auto stored = the0::get_state("k");
    const auto at = stored.find(':');
    return at == std::string::npos ? 0 : std::stol(stored.substr(at + 1));
}

static std::string answer(const std::string& path, const std::string& params) {
    if (path == "/status")
        return "{\"count\":" + std::to_string(counted()) + ",\"params\":" + params + ",\"note\":\"grün €\"}";
    if (path == "/write") return the0::set_state("k", "{\"count\":99}"), "null";
    if (path == "/boom") throw std::runtime_error("boom");
    throw std::runtime_error("No handler for path: " + path);
}

int main() {
    if (the0::env("ENTRYPOINT_TYPE") == "query") return the0::run(answer);
    const auto config = the0::env("BOT_CONFIG");
    const auto count = counted() + 1;
    the0::set_state("k", "{\"count\":" + std::to_string(count) + "}");
    the0::log("counted " + std::to_string(count));
    the0::metric("count", count);
    std::cerr << "plain words of " << the0::env("BOT_ID") << std::endl;
    if (config.find("\"mode\":\"fail\"") != std::string::npos) return 3;
    if (config.find("\"mode\":\"wait\"") != std::string::npos) {
        std::cout << "ready" << std::endl;
        std::this_thread::sleep_for(std::chrono::seconds(60));
    }
}
