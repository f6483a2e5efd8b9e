// Counts its runs in `<STATE_DIR>/k.json`, written in place; `"mode"` in its configuration says how it goes on.
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <string>
#include <thread>

int main() {
    const std::string config = std::getenv("BOT_CONFIG");
    const std::filesystem::path folder = std::getenv("STATE_DIR");
    long count = 0;
    if (std::ifstream stored{folder / "k.json"}; stored) {
        stored.ignore(64, ':');
        stored >> count;
    }
    ++count;
    std::filesystem::create_directories(folder);
    std::ofstream{folder / "k.json"} << "{\"count\":" << count << "}";
    using namespace std::chrono;
    const auto now = duration_cast<milliseconds>(system_clock::now().time_since_epoch()).count();
    std::cout << "{\"timestamp\":" << now << ",\"level\":\"info\",\"message\":\"counted " << count << "\"}" << std::endl;
    std::cerr << "plain words of " << std::getenv("BOT_ID") << std::endl;
    if (config.find("\"mode\":\"fail\"") != std::string::npos) return 3;
    if (config.find("\"mode\":\"wait\"") != std::string::npos) {
        std::cout << "ready" << std::endl;
        std::this_thread::sleep_for(seconds(60));
    }
}
