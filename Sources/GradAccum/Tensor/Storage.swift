/// The memory that tensors look at: from the arena, or the caller's.
final class Storage {
    typealias Release = () -> Void

    let address: UnsafeMutableRawPointer
    let byteCount: Int
    /// Raised by every write that a recorded operation could miss.
    var version = 0
    private let release: Release?

    /// Uninitialised memory from the arena.
    init(byteCount: Int) throws(GAError) {
        address = try Arena.shared.allocate(byteCount: byteCount)
        self.byteCount = byteCount
        release = nil
    }

    /// Memory of the caller; `release` is called once, when nothing looks at it any more.
    init(wrapping address: UnsafeMutableRawPointer, byteCount: Int, release: Release?) {
        self.address = address
        self.byteCount = byteCount
        self.release = release ?? {}
    }

    deinit {
        if let release { release() } else { Arena.shared.free(address) }
    }
}
