/// The memory that tensors look at: from the arena, or the caller's.
final class Storage {
    private enum Source {
        case arena(Arena.Block)
        case caller(release: (() -> Void)?)
    }

    let address: UnsafeMutableRawPointer
    /// The number, of ``Node/nextNumber()``, of the last write that a recorded operation could miss.
    private(set) var lastWrite: UInt64 = 0
    /// Whether the caller has the address, and so can write here without a note.
    private(set) var isExposed = false
    /// Whether the library must not write here.
    private(set) var isReadOnly = false
    /// Whose parameters lie here.
    weak var owner: Optimizer?
    private var source: Source

    /// Uninitialised memory from the arena.
    init(byteCount: Int, for lifetime: Arena.Lifetime = .update) throws(GAError) {
        let block = try Arena.shared.allocate(byteCount: byteCount, for: lifetime)
        address = block.address
        source = .arena(block)
    }

    /// Uninitialised memory for `floatCount` numbers that need no shape.
    convenience init(floatCount: Int) throws(GAError) {
        try self.init(byteCount: floatCount * MemoryLayout<Float>.stride)
    }

    var floats: UnsafeMutablePointer<Float> { address.assumingMemoryBound(to: Float.self) }

    /// Memory of the caller; `release` is called once, when nothing looks at it any more.
    init(wrapping address: UnsafeMutableRawPointer, release: (() -> Void)?) {
        self.address = address
        source = .caller(release: release)
    }

    /// To be called by every write but the one that makes a tensor.
    func noteWrite() { lastWrite = Node.nextNumber() }

    /// To be called before a caller gets the address.
    func expose() { isExposed = true }

    func makeReadOnly() { isReadOnly = true }

    /// Leaves memory of the caller to the caller: it is not released from here.
    func giveBack() {
        if case .caller = source { source = .caller(release: nil) }
    }

    deinit {
        switch source {
        case .arena(let block): Arena.shared.free(block)
        case .caller(let release): release?()
        }
    }
}
