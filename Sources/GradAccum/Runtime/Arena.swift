import Glibc

/// What tensor memory is used for, in bytes.
public struct MemoryUsage: Sendable, Equatable {
    /// In tensors, accumulators and optimizer state now.
    public internal(set) var liveBytes = 0
    /// The highest `liveBytes` since the start or the last reset.
    public internal(set) var peakBytes = 0
    /// Obtained from the allocator and kept for reuse.
    public internal(set) var arenaBytes = 0
    /// Calls of the allocator since the start: constant in steady state.
    public internal(set) var allocatorCalls = 0

    fileprivate mutating func countLive(_ byteCount: Int) {
        liveBytes += byteCount
        peakBytes = max(peakBytes, liveBytes)
    }
}

/// The bytes behind all tensors: a few large chunks, cut to size and joined again when blocks are freed.
///
/// Every micro-batch asks for the same sizes in the same order, so after the first one no call reaches the
/// allocator and no page is touched for the first time. What outlives an update has chunks of its own: between blocks that
/// come and go it would leave gaps that fit nothing else.
final class Arena: @unchecked Sendable {
    static let shared = Arena()

    /// How long memory is in use.
    enum Lifetime: Int, CaseIterable {
        /// As a rule until a backward pass has ended, at most: tensors.
        case update
        /// From one update to the next: sums of gradients, the state of optimizers and averages of weights.
        case training
    }

    private static let smallestChunk = 1 << 20
    private static let largestStep = 256 << 20

    private struct State {
        var allocator = Allocator.system
        /// By lifetime.
        var maps = Lifetime.allCases.map { _ in BlockMap() }
        var usage = MemoryUsage()
        /// How many chunks are being asked for.
        var growing = 0
    }

    let lock = Lock()
    /// Under the lock. By address, so that the runtime does not check what the lock makes sure of.
    private let state = UnsafeMutablePointer<State>.allocate(capacity: 1)

    private init() { state.initialize(to: State()) }

    private func withState<Result, Failure: Error>(
        _ body: (inout State) throws(Failure) -> Result
    ) throws(Failure) -> Result {
        lock.lock()
        defer { lock.unlock() }
        return try body(&state.pointee)
    }

    /// Memory in use: where it is, and what to give back.
    struct Block {
        let address: UnsafeMutableRawPointer
        fileprivate let lifetime: Lifetime
        fileprivate let index: BlockMap.Index
    }

    /// Uninitialised memory for `byteCount` bytes, aligned to ``Allocator/alignment``.
    func allocate(byteCount: Int, for lifetime: Lifetime = .update) throws(GAError) -> Block {
        let mask = Allocator.alignment - 1
        guard byteCount <= Int.max - mask else { throw Arena.exhausted(byteCount) }
        let size = max((byteCount + mask) & ~mask, Allocator.alignment)
        let found: Block? = withState { state in
            guard let index = state.maps[lifetime.rawValue].take(size) else { return nil }
            state.usage.countLive(size)
            return Block(address: state.maps[lifetime.rawValue].address(index), lifetime: lifetime, index: index)
        }
        if let found { return found }
        let chunk = try grow(size)
        return withState { state in
            state.growing -= 1
            state.usage.arenaBytes += chunk.count
            state.usage.countLive(size)
            let index = state.maps[lifetime.rawValue].take(size, of: chunk)
            return Block(address: chunk.baseAddress!, lifetime: lifetime, index: index)
        }
    }

    func free(_ block: Block) { withState { $0.usage.liveBytes -= $0.maps[block.lifetime.rawValue].free(block.index) } }

    func memoryUsage() -> MemoryUsage { withState { $0.usage } }

    func resetPeak() { withState { $0.usage.peakBytes = $0.usage.liveBytes } }

    /// Gives chunks without a block in use back to the allocator.
    func trim() {
        let (unused, allocator): ([UnsafeMutableRawBufferPointer], Allocator) = withState { state in
            let unused = state.maps.indices.flatMap { state.maps[$0].removeUnusedChunks() }
            for chunk in unused { state.usage.arenaBytes -= chunk.count }
            return (unused, state.allocator)
        }
        for chunk in unused { allocator.release(chunk.baseAddress!, chunk.count, allocator.user) }
    }

    func setAllocator(_ new: Allocator) throws(GAError) {
        trim()
        try withState { (state) throws(GAError) in
            guard state.maps.allSatisfy({ $0.chunkCount == 0 }) && state.growing == 0 else {
                throw GAError(
                    .state,
                    "set_allocator: \(state.usage.liveBytes) bytes of the present allocator are in use: "
                        + "free all tensors, optimizers and accumulators first")
            }
            state.allocator = new
        }
    }

    private static func exhausted(_ byteCount: Int) -> GAError {
        GAError(.outOfMemory, "the allocator has no \(byteCount) bytes: use smaller micro-batches or free tensors")
    }

    /// Memory for a new chunk: as large as all others together, up to a limit, so that chunks stay few.
    ///
    /// The allocator is called without the lock, as it may call the library. `growing` counts what is under way.
    private func grow(_ size: Int) throws(GAError) -> UnsafeMutableRawBufferPointer {
        let (allocator, wanted): (Allocator, Int) = withState { state in
            state.growing += 1
            let step = min(max(state.usage.arenaBytes, Arena.smallestChunk), Arena.largestStep)
            return (state.allocator, max(size, step))
        }
        var failure = Arena.exhausted(size)
        for byteCount in wanted == size ? [size] : [wanted, size] {
            withState { state in state.usage.allocatorCalls += 1 }
            guard let address = allocator.allocate(byteCount, Allocator.alignment, allocator.user) else { continue }
            if Int(bitPattern: address) % Allocator.alignment == 0 {
                return UnsafeMutableRawBufferPointer(start: address, count: byteCount)
            }
            allocator.release(address, byteCount, allocator.user)
            failure = GAError(
                .unsupported, "the allocator returned memory that is not at a multiple of \(Allocator.alignment)")
        }
        withState { state in state.growing -= 1 }
        throw failure
    }
}
