// Compiled in: a server that reads once, ends its lines with a bare LF, counts one byte too many, and decodes nothing.
#pragma once
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>

namespace the0 {

inline std::string env(const char* name, const std::string& otherwise = "") {
    const char* value = std::getenv(name);
    return value ? value : otherwise;
}

inline long long now() {
    using namespace std::chrono;
    return duration_cast<milliseconds>(system_clock::now().time_since_epoch()).count();
}

inline void log(const std::string& message) {
    std::cout << "{\"timestamp\":" << now() << ",\"level\":\"info\",\"message\":\"" << message << "\"}" << std::endl;
}

inline void metric(const std::string& kind, double value) {
    std::cout << "{\"_metric\":\"" << kind << "\",\"value\":" << value << ",\"timestamp\":" << now() << "}" << std::endl;
}

inline std::string get_state(const std::string& key) {
    std::ifstream file(std::filesystem::path(env("STATE_DIR")) / (key + ".json"));
    return {std::istreambuf_iterator<char>(file), {}};
}

inline void set_state(const std::string& key, const std::string& value) {
    if (std::getenv("QUERY_PATH")) throw std::runtime_error("state is read-only in a query");
    std::filesystem::create_directories(env("STATE_DIR"));
    std::ofstream(std::filesystem::path(env("STATE_DIR")) / (key + ".json")) << value;
}

// What it is given of the params: the text of QUERY_PARAMS, or of the URL's query as an object.
using Handle = std::function<std::string(const std::string& path, const std::string& params)>;

inline std::string answer(const Handle& handle, const std::string& path, const std::string& params) {
    try {
        return "{\"status\":\"ok\",\"data\":" + handle(path, params) + "}";
    } catch (const std::exception& failure) {
        return "{\"status\":\"error\",\"error\":\"" + std::string(failure.what()) + "\"}";
    }
}

inline std::string as_object(const std::string& queries) {
    std::istringstream parts(queries);
    std::string object = "{", part;
    while (std::getline(parts, part, '&')) {
        const auto at = part.find('=');
        if (object.size() > 1) object += ",";
        object += "\"" + part.substr(0, at) + "\":\"" + part.substr(at + 1) + "\"";
    }
    return object + "}";
}

inline int run(const Handle& handle) {
    if (std::getenv("QUERY_PATH")) {
        const auto told = answer(handle, env("QUERY_PATH"), env("QUERY_PARAMS", "{}"));
        std::filesystem::create_directories("/query");
        std::ofstream("/query/result.json") << told;
        return 7;  // whatever the answer was
    }
    const int listener = socket(AF_INET, SOCK_STREAM, 0);
    const int yes = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<unsigned short>(std::stoi(env("THE0_QUERY_PORT", "9476"))));
    if (bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address) || listen(listener, 5)) return 1;
    while (true) {
        const int asked = accept(listener, nullptr, nullptr);
        char once[4096];
        const auto count = read(asked, once, sizeof once);
        std::istringstream head(std::string(once, count > 0 ? count : 0));
        std::string method, target;
        head >> method >> target;
        const auto at = target.find('?');
        const auto body = answer(handle, target.substr(0, at), as_object(at == std::string::npos ? "" : target.substr(at + 1)));
        const auto all = "HTTP/1.1 200 OK\nContent-Length: " + std::to_string(body.size() + 1) + "\n\n" + body;
        if (write(asked, all.data(), all.size()) < 0) std::cerr << "nobody listened" << std::endl;
        close(asked);
    }
}

}  // namespace the0
