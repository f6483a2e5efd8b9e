#[repr(C)]
struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}

extern "C" {
    fn clock_gettime(clock: i32, time: *mut Timespec) -> i32;
}

fn main() {
    let mut now = Timespec { seconds: 0, nanoseconds: 0 };
    // SAFETY: the kernel fills the struct that it is given; 1 is CLOCK_MONOTONIC.
    unsafe { clock_gettime(1, &mut now) };
    println!("first {}", now.seconds * 1_000_000_000 + now.nanoseconds);
}
