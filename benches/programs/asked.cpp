// A native bot's query process as small as one can be: one connection at a time, one read, one answer.
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <string>

int main() {
    signal(SIGPIPE, SIG_IGN);
    const char* port = getenv("THE0_QUERY_PORT");
    if (getenv("ENTRYPOINT_TYPE") == nullptr || std::string(getenv("ENTRYPOINT_TYPE")) != "query") {
        for (;;) pause();
    }
    int listener = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<unsigned short>(atoi(port ? port : "9476")));
    if (bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 || listen(listener, 128) != 0) return 1;
    const std::string body = R"({"status": "ok", "data": {"price": 101.25}})";
    const std::string answer = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: " +
                               std::to_string(body.size()) + "\r\n\r\n" + body;
    char buffer[8192];
    for (;;) {
        int asked = accept(listener, nullptr, nullptr);
        if (asked < 0) continue;
        if (read(asked, buffer, sizeof buffer) > 0 && write(asked, answer.data(), answer.size()) < 0) {
        }
        close(asked);
    }
}
