import Glibc

/// Where tensor memory comes from: `posix_memalign`, or the host's own functions.
public struct Allocator: @unchecked Sendable {
    public typealias Allocate = @convention(c) (Int, Int, UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer?
    public typealias Release = @convention(c) (UnsafeMutableRawPointer?, Int, UnsafeMutableRawPointer?) -> Void

    /// Bytes between the addresses that tensors start at: a cache line and an AVX-512 register.
    public static let alignment = 64

    let allocate: Allocate
    let release: Release
    let user: UnsafeMutableRawPointer?

    public init(allocate: @escaping Allocate, release: @escaping Release, user: UnsafeMutableRawPointer?) {
        self.allocate = allocate
        self.release = release
        self.user = user
    }

    public static let system = Allocator(
        allocate: { byteCount, alignment, _ in
            var memory: UnsafeMutableRawPointer?
            return posix_memalign(&memory, alignment, byteCount) == 0 ? memory : nil
        },
        release: { memory, _, _ in free(memory) },
        user: nil)
}
