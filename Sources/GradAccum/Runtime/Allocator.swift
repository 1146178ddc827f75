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

    /// Lets large memory be made of pages of 2 MiB, which take a five-hundredth of the entries in the caches of addresses:
    /// a loop over it is faster, and so is its first touch.
    ///
    /// A kernel without them, or that is set to hand out none, changes nothing.
    private static func askForHugePages(_ memory: UnsafeMutableRawPointer, _ byteCount: Int) {
        let (smallest, page) = (1 << 17, Int(getpagesize()))
        guard byteCount >= smallest else { return }
        let start = (Int(bitPattern: memory) + page - 1) & ~(page - 1)
        let end = (Int(bitPattern: memory) + byteCount) & ~(page - 1)
        _ = madvise(UnsafeMutableRawPointer(bitPattern: start), end - start, MADV_HUGEPAGE)
    }

    public static let system = Allocator(
        allocate: { byteCount, alignment, _ in
            var memory: UnsafeMutableRawPointer?
            guard posix_memalign(&memory, alignment, byteCount) == 0, let memory else { return nil }
            askForHugePages(memory, byteCount)
            return memory
        },
        release: { memory, _, _ in free(memory) },
        user: nil)
}
