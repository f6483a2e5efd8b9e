#include <chrono>
#include <iostream>

int main() {
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    std::cout << "first " << std::chrono::duration_cast<std::chrono::nanoseconds>(now).count() << std::endl;
}
