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

/// The bytes behind all tensors: a few large chunks, cut to size and joined again when blocks are freed.
///
/// Every micro-batch asks for the same sizes in the same order, so after the first one no call reaches the
/// allocator and no page is touched for the first time. Free blocks are kept in bins by size, eight to a power of two,
/// so that a block that fits well is found at once (Masmano et al., TLSF, ECRTS 2004).
final class Arena: @unchecked Sendable {
    static let shared = Arena()

    /// A stretch of a chunk, linked in address order, and among the free blocks of its bin.
    final class Block {
        let address: UnsafeMutableRawPointer
        fileprivate(set) var byteCount: Int
        fileprivate var isFree = true
        fileprivate unowned(unsafe) var previous: Block?
        fileprivate var next: Block?
        fileprivate unowned(unsafe) var previousFree: Block?
        fileprivate unowned(unsafe) var nextFree: Block?

        fileprivate init(_ address: UnsafeMutableRawPointer, _ byteCount: Int) {
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
    /// How many blocks of a bin are compared before a larger bin is tried.
    private static let mostCompared = 32

    let lock = Lock()
    private var allocator = Allocator.system
    private var chunks: [Chunk] = []
    private var bins = [Unmanaged<Block>?](repeating: nil, count: 8 * 64)
    /// A bit for every bin that is not empty.
    private var filled = [UInt64](repeating: 0, count: 8)
    private var usage = MemoryUsage()
    private var growing = 0

    /// Uninitialised memory for `byteCount` bytes, aligned to ``Allocator/alignment``.
    func allocate(byteCount: Int) throws(GAError) -> Block {
        let mask = Allocator.alignment - 1
        guard byteCount <= Int.max - mask else { throw Arena.exhausted(byteCount) }
        let size = max((byteCount + mask) & ~mask, Allocator.alignment)
        let found: Block? = lock.withLock {
            guard let block = findFree(size) else { return nil }
            unlink(block)
            return take(block, size)
        }
        if let found { return found }
        let memory = try grow(size)
        return lock.withLock {
            growing -= 1
            usage.arenaBytes += memory.count
            let block = Block(memory.baseAddress!, memory.count)
            chunks.append(Chunk(first: block, byteCount: memory.count))
            return take(block, size)
        }
    }

    private func take(_ block: Block, _ size: Int) -> Block {
        block.isFree = false
        split(block, to: size)
        usage.liveBytes += size
        usage.peakBytes = max(usage.peakBytes, usage.liveBytes)
        return block
    }

    func free(_ block: Block) {
        lock.withLock {
            usage.liveBytes -= block.byteCount
            block.isFree = true
            if let next = block.next, next.isFree {
                unlink(next)
                join(block, next)
            }
            if let previous = block.previous, previous.isFree {
                unlink(previous)
                join(previous, block)
                link(previous)
            } else {
                link(block)
            }
        }
    }

    func memoryUsage() -> MemoryUsage { lock.withLock { usage } }

    func resetPeak() { lock.withLock { usage.peakBytes = usage.liveBytes } }

    /// Gives chunks without a block in use back to the allocator.
    func trim() {
        let (unused, allocator): ([Chunk], Allocator) = lock.withLock {
            let unused = chunks.filter { $0.first.isFree && $0.first.next == nil }
            for chunk in unused {
                unlink(chunk.first)
                usage.arenaBytes -= chunk.byteCount
            }
            chunks.removeAll { chunk in unused.contains { $0.first === chunk.first } }
            return (unused, self.allocator)
        }
        for chunk in unused { allocator.release(chunk.first.address, chunk.byteCount, allocator.user) }
    }

    func setAllocator(_ new: Allocator) throws(GAError) {
        trim()
        try lock.withLock { () throws(GAError) in
            guard chunks.isEmpty && growing == 0 else {
                throw GAError(
                    .state,
                    "set_allocator: \(usage.liveBytes) bytes of the present allocator are in use: "
                        + "free all tensors, optimizers and accumulators first")
            }
            allocator = new
        }
    }

    private static func exhausted(_ byteCount: Int) -> GAError {
        GAError(.outOfMemory, "the allocator has no \(byteCount) bytes: use smaller micro-batches or free tensors")
    }

    /// Memory for a new chunk: as large as all others together, up to a limit, so that chunks stay few.
    ///
    /// The allocator is called without the lock, as it may call the library. `growing` counts what is under way.
    private func grow(_ size: Int) throws(GAError) -> UnsafeMutableRawBufferPointer {
        let (allocator, wanted): (Allocator, Int) = lock.withLock {
            growing += 1
            return (
                self.allocator, max(size, min(max(usage.arenaBytes, Arena.smallestChunk), Arena.largestStep))
            )
        }
        var failure = Arena.exhausted(size)
        for byteCount in wanted == size ? [size] : [wanted, size] {
            lock.withLock { usage.allocatorCalls += 1 }
            guard let address = allocator.allocate(byteCount, Allocator.alignment, allocator.user) else { continue }
            if Int(bitPattern: address) % Allocator.alignment == 0 {
                return UnsafeMutableRawBufferPointer(start: address, count: byteCount)
            }
            allocator.release(address, byteCount, allocator.user)
            failure = GAError(
                .unsupported, "the allocator returned memory that is not at a multiple of \(Allocator.alignment)")
        }
        lock.withLock { growing -= 1 }
        throw failure
    }

    // MARK: Blocks in address order

    private func split(_ block: Block, to size: Int) {
        guard block.byteCount > size else { return }
        let rest = Block(block.address + size, block.byteCount - size)
        block.byteCount = size
        rest.next = block.next
        rest.previous = block
        block.next?.previous = rest
        block.next = rest
        link(rest)
    }

    private func join(_ block: Block, _ next: Block) {
        block.byteCount += next.byteCount
        block.next = next.next
        block.next?.previous = block
    }

    // MARK: Free blocks by size

    /// Bins hold the sizes with the same leading one bit and the same three bits after it.
    private func bin(_ size: Int) -> Int {
        let exponent = Int.bitWidth - 1 - size.leadingZeroBitCount
        return exponent << 3 | (size >> (exponent - 3)) & 7
    }

    private func findFree(_ size: Int) -> Block? {
        let own = bin(size)
        var best: Block?
        var candidate = bins[own]?.takeUnretainedValue()
        var compared = 0
        while let block = candidate, compared < Arena.mostCompared {
            if block.byteCount >= size && block.byteCount < best?.byteCount ?? Int.max { best = block }
            if block.byteCount == size { break }
            candidate = block.nextFree
            compared += 1
        }
        return best ?? firstFree(from: own + 1)
    }

    private func firstFree(from bin: Int) -> Block? {
        var word = bin >> 6
        guard word < filled.count else { return nil }
        var bits = filled[word] & (~0 << UInt64(bin & 63))
        while bits == 0 {
            word += 1
            guard word < filled.count else { return nil }
            bits = filled[word]
        }
        return bins[word << 6 | bits.trailingZeroBitCount]?.takeUnretainedValue()
    }

    private func link(_ block: Block) {
        let bin = bin(block.byteCount)
        let head = bins[bin]?.takeUnretainedValue()
        block.previousFree = nil
        block.nextFree = head
        head?.previousFree = block
        bins[bin] = Unmanaged.passUnretained(block)
        filled[bin >> 6] |= 1 << UInt64(bin & 63)
    }

    private func unlink(_ block: Block) {
        block.nextFree?.previousFree = block.previousFree
        if let previous = block.previousFree {
            previous.nextFree = block.nextFree
            return
        }
        let bin = bin(block.byteCount)
        bins[bin] = block.nextFree.map { Unmanaged.passUnretained($0) }
        if bins[bin] == nil { filled[bin >> 6] &= ~(1 << UInt64(bin & 63)) }
    }
}
