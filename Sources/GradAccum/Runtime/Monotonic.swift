import Glibc

/// Time that never goes back, for measuring.
enum Monotonic {
    /// Nanoseconds since some moment in the past.
    static func now() -> UInt64 {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        return UInt64(time.tv_sec) &* 1_000_000_000 &+ UInt64(time.tv_nsec)
    }

    /// Seconds from one moment to a later one, 0 if it is not later.
    static func seconds(from start: UInt64, to end: UInt64) -> Double {
        end > start ? Double(end - start) * 1e-9 : 0
    }
}
