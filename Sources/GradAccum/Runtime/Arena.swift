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
}

/// The bytes behind all tensors: a few large chunks, cut best-fit and joined again when blocks are freed.
///
/// Every micro-batch asks for the same sizes in the same order, so after the first one no call reaches the
/// allocator and no page is touched for the first time.
final class Arena: @unchecked Sendable {
    static let shared = Arena()

    /// A stretch of a chunk, in address order through `previous` and `next`.
    private final class Block {
        let address: UnsafeMutableRawPointer
        var byteCount: Int
        var isFree = true
        unowned(unsafe) var previous: Block?
        var next: Block?

        init(_ address: UnsafeMutableRawPointer, _ byteCount: Int) {
            self.address = address
            self.byteCount = byteCount
        }
    }

    private struct Chunk {
        let first: Block
        let byteCount: Int
    }

    private static let smallestChunk = 1 << 20
    private static let largestStep = 64 << 20

    let lock = Lock()
    private var allocator = Allocator.system
    private var chunks: [Chunk] = []
    private var used: [UnsafeMutableRawPointer: Block] = [:]
    private var usage = MemoryUsage()

    /// Uninitialised memory for `byteCount` bytes, aligned to ``Allocator/alignment``.
    func allocate(byteCount: Int) throws(GAError) -> UnsafeMutableRawPointer {
        let mask = Allocator.alignment - 1
        guard byteCount <= Int.max - mask else { throw Arena.exhausted(byteCount) }
        let size = max((byteCount + mask) & ~mask, Allocator.alignment)
        return try lock.withLock { () throws(GAError) in
            let block: Block
            if let fit = bestFit(size) { block = fit } else { block = try grow(size) }
            block.isFree = false
            split(block, to: size)
            used[block.address] = block
            usage.liveBytes += size
            usage.peakBytes = max(usage.peakBytes, usage.liveBytes)
            return block.address
        }
    }

    func free(_ address: UnsafeMutableRawPointer) {
        lock.withLock {
            guard let block = used.removeValue(forKey: address) else { return }
            usage.liveBytes -= block.byteCount
            block.isFree = true
            if let next = block.next, next.isFree { join(block, next) }
            if let previous = block.previous, previous.isFree { join(previous, block) }
        }
    }

    func memoryUsage() -> MemoryUsage { lock.withLock { usage } }

    func resetPeak() { lock.withLock { usage.peakBytes = usage.liveBytes } }

    /// Gives chunks without a block in use back to the allocator.
    func trim() {
        lock.withLock {
            chunks.removeAll { chunk in
                guard chunk.first.isFree && chunk.first.next == nil else { return false }
                allocator.release(chunk.first.address, chunk.byteCount, allocator.user)
                usage.arenaBytes -= chunk.byteCount
                return true
            }
        }
    }

    func setAllocator(_ new: Allocator) throws(GAError) {
        trim()
        try lock.withLock { () throws(GAError) in
            guard chunks.isEmpty else {
                throw GAError(
                    .state,
                    "ga_set_allocator: \(usage.liveBytes) bytes of the present allocator are in use: "
                        + "free all tensors, optimizers and accumulators first")
            }
            allocator = new
        }
    }

    private static func exhausted(_ byteCount: Int) -> GAError {
        GAError(.outOfMemory, "the allocator has no \(byteCount) bytes: use smaller micro-batches or free tensors")
    }

    private func bestFit(_ size: Int) -> Block? {
        var best: Block?
        for chunk in chunks {
            var block: Block? = chunk.first
            while let candidate = block {
                if candidate.isFree && candidate.byteCount >= size
                    && candidate.byteCount < best?.byteCount ?? Int.max
                {
                    best = candidate
                    if candidate.byteCount == size { return candidate }
                }
                block = candidate.next
            }
        }
        return best
    }

    /// A new chunk: at least as large as all others together up to a limit, so that chunks stay few.
    private func grow(_ size: Int) throws(GAError) -> Block {
        let wanted = max(size, min(max(usage.arenaBytes, Arena.smallestChunk), Arena.largestStep))
        for byteCount in wanted == size ? [size] : [wanted, size] {
            usage.allocatorCalls += 1
            guard let address = allocator.allocate(byteCount, Allocator.alignment, allocator.user) else { continue }
            usage.arenaBytes += byteCount
            let block = Block(address, byteCount)
            chunks.append(Chunk(first: block, byteCount: byteCount))
            return block
        }
        throw Arena.exhausted(size)
    }

    private func split(_ block: Block, to size: Int) {
        guard block.byteCount > size else { return }
        let rest = Block(block.address + size, block.byteCount - size)
        block.byteCount = size
        rest.next = block.next
        rest.previous = block
        block.next?.previous = rest
        block.next = rest
    }

    private func join(_ block: Block, _ next: Block) {
        block.byteCount += next.byteCount
        block.next = next.next
        block.next?.previous = block
    }
}
