// A realtime bot without any library: counts primes, a block of numbers at a time, and goes on where it was.
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

namespace {

volatile std::sig_atomic_t stop_asked = 0;

long long number_after(const std::string& text, const std::string& name, long long otherwise) {
    const auto at = text.find("\"" + name + "\":");
    return at == std::string::npos ? otherwise : std::atoll(text.c_str() + at + name.size() + 3);
}

bool is_prime(long long number) {
    for (long long each = 2; each * each <= number; ++each)
        if (number % each == 0) return false;
    return number > 1;
}

void log(const std::string& message) {
    using namespace std::chrono;
    const auto now = duration_cast<milliseconds>(system_clock::now().time_since_epoch()).count();
    std::printf("{\"level\":\"info\",\"message\":\"%s\",\"timestamp\":%lld}\n", message.c_str(), static_cast<long long>(now));
    std::fflush(stdout);
}

class Progress {
public:
    explicit Progress(std::filesystem::path file) : file_(std::move(file)) {
        std::filesystem::create_directories(file_.parent_path());
        std::ifstream stored(file_);
        const std::string text((std::istreambuf_iterator<char>(stored)), {});
        seen = number_after(text, "seen", 0);
        primes = number_after(text, "primes", 0);
    }

    void save() const {
        auto temporary = file_;
        temporary += ".tmp";
        std::ofstream(temporary) << "{\"seen\":" << seen << ",\"primes\":" << primes << "}";
        std::filesystem::rename(temporary, file_);  // so that a reader finds the old value or the new one
    }

    long long seen = 0;
    long long primes = 0;

private:
    std::filesystem::path file_;
};

}  // namespace

int main() {
    std::signal(SIGTERM, [](int) { stop_asked = 1; });
    const std::string config = std::getenv("BOT_CONFIG");
    const long long block = number_after(config, "block", 1000);
    Progress progress(std::filesystem::path(std::getenv("STATE_DIR")) / "primes.json");
    log("begins at " + std::to_string(progress.seen));
    while (!stop_asked) {
        for (long long i = 0; i < block; ++i) progress.primes += is_prime(++progress.seen);
        progress.save();
        log(std::to_string(progress.primes) + " primes up to " + std::to_string(progress.seen));
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
}
