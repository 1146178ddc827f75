/// Where the blocks of the arena's chunks lie, and which of them are free.
///
/// Free blocks are kept in bins by size, eight to a power of two, so that a block that fits well is found at once
/// (Masmano et al., TLSF, ECRTS 2004). Sizes are multiples of ``Allocator/alignment``.
struct BlockMap {
    /// The number of a block, the same from ``take(_:)`` to ``free(_:)``.
    typealias Index = Int

    /// A stretch of a chunk, linked in address order, and among the free blocks of its bin.
    private struct Block {
        var address: UnsafeMutableRawPointer
        var byteCount: Int
        var isFree: Bool
        var previous = none
        var next = none
        var previousFree = none
        var nextFree = none
    }

    /// Blocks of up to this size stay whole when they are freed: the next operation wants them as they are.
    private static let largestWhole = 4096
    /// How many blocks of a bin are compared before a larger bin is tried.
    private static let mostCompared = 32
    private static let none: Index = -1

    private var blocks: [Block] = []
    /// Numbers without a block, to be given out again.
    private var unused: [Index] = []
    private var bins = [Index](repeating: none, count: 8 * 64)
    /// By size, in units of the alignment, the blocks that stayed whole. Their neighbours take them as in use.
    private var whole = [Index](repeating: none, count: largestWhole / Allocator.alignment + 1)
    /// A bit for every bin that is not empty.
    private var filled = [UInt64](repeating: 0, count: 8)
    private(set) var chunkCount = 0

    // MARK: In and out

    func address(_ index: Index) -> UnsafeMutableRawPointer { blocks[index].address }

    /// A block of `size` bytes, or nil if none that is free is as large.
    mutating func take(_ size: Int) -> Index? {
        if size <= BlockMap.largestWhole, case let index = whole[size / Allocator.alignment], index != BlockMap.none {
            whole[size / Allocator.alignment] = blocks[index].nextFree
            return index
        }
        guard let found = findFree(size) ?? findFreeAmongAll(size) else { return nil }
        if blocks[found].byteCount == size {
            unlink(found)
            blocks[found].isFree = false
            return found
        }
        // The free block keeps its number, and mostly its bin too, and gives up its front.
        let (address, previous) = (blocks[found].address, blocks[found].previous)
        let front = insert(Block(address: address, byteCount: size, isFree: false, previous: previous, next: found))
        if previous != BlockMap.none { blocks[previous].next = front }
        blocks[found].previous = front
        blocks[found].address = address + size
        resize(found, to: blocks[found].byteCount - size)
        return front
    }

    /// Adds a chunk and takes the first `size` bytes of it.
    mutating func take(_ size: Int, of chunk: UnsafeMutableRawBufferPointer) -> Index {
        chunkCount += 1
        let block = insert(Block(address: chunk.baseAddress!, byteCount: size, isFree: false))
        if chunk.count > size {
            let rest = Block(
                address: chunk.baseAddress! + size, byteCount: chunk.count - size, isFree: true, previous: block)
            let index = insert(rest)
            blocks[block].next = index
            link(index)
        }
        return block
    }

    /// Takes a block back; returns its size.
    mutating func free(_ index: Index) -> Int {
        let size = blocks[index].byteCount
        if size <= BlockMap.largestWhole {
            blocks[index].nextFree = whole[size / Allocator.alignment]
            whole[size / Allocator.alignment] = index
        } else {
            join(index)
        }
        return size
    }

    /// Makes a block in use, or one that stayed whole, one with its free neighbours.
    private mutating func join(_ index: Index) {
        let block = blocks[index]
        let previousIsFree = block.previous != BlockMap.none && blocks[block.previous].isFree
        let nextIsFree = block.next != BlockMap.none && blocks[block.next].isFree
        switch (previousIsFree, nextIsFree) {
        case (false, false):
            blocks[index].isFree = true
            link(index)
        case (true, false):
            removeFromOrder(index)
            resize(block.previous, to: blocks[block.previous].byteCount + block.byteCount)
        case (false, true):
            removeFromOrder(index)
            blocks[block.next].address = block.address
            resize(block.next, to: blocks[block.next].byteCount + block.byteCount)
        case (true, true):
            let joined = block.byteCount + blocks[block.next].byteCount
            unlink(block.next)
            removeFromOrder(index)
            removeFromOrder(block.next)
            resize(block.previous, to: blocks[block.previous].byteCount + joined)
        }
    }

    /// Joins the blocks that stayed whole, and looks again.
    private mutating func findFreeAmongAll(_ size: Int) -> Index? {
        joinWhole()
        return findFree(size)
    }

    private mutating func joinWhole() {
        for list in whole.indices {
            while case let index = whole[list], index != BlockMap.none {
                whole[list] = blocks[index].nextFree
                join(index)
            }
        }
    }

    /// Removes the chunks without a block in use, and returns them.
    mutating func removeUnusedChunks() -> [UnsafeMutableRawBufferPointer] {
        joinWhole()
        var chunks: [UnsafeMutableRawBufferPointer] = []
        for index in blocks.indices {
            let block = blocks[index]
            guard block.isFree && block.previous == BlockMap.none && block.next == BlockMap.none else { continue }
            unlink(index)
            removeFromOrder(index)
            chunks.append(UnsafeMutableRawBufferPointer(start: block.address, count: block.byteCount))
        }
        chunkCount -= chunks.count
        return chunks
    }

    // MARK: Blocks in address order

    private mutating func insert(_ block: Block) -> Index {
        guard let index = unused.popLast() else {
            blocks.append(block)
            return blocks.count - 1
        }
        blocks[index] = block
        return index
    }

    /// Closes the gap that a block leaves between its neighbours, and gives up its number.
    private mutating func removeFromOrder(_ index: Index) {
        let (previous, next) = (blocks[index].previous, blocks[index].next)
        if previous != BlockMap.none { blocks[previous].next = next }
        if next != BlockMap.none { blocks[next].previous = previous }
        blocks[index].isFree = false
        unused.append(index)
    }

    // MARK: Free blocks by size

    /// Bins hold the sizes with the same leading one bit and the same three bits after it.
    private func bin(_ size: Int) -> Int {
        let exponent = Int.bitWidth - 1 - size.leadingZeroBitCount
        return exponent << 3 | (size >> (exponent - 3)) & 7
    }

    private func findFree(_ size: Int) -> Index? {
        let own = bin(size)
        var best = BlockMap.none
        var candidate = bins[own]
        var compared = 0
        while candidate != BlockMap.none && compared < BlockMap.mostCompared {
            let found = blocks[candidate].byteCount
            if found == size { return candidate }
            if found > size && (best == BlockMap.none || found < blocks[best].byteCount) { best = candidate }
            candidate = blocks[candidate].nextFree
            compared += 1
        }
        return best == BlockMap.none ? firstFree(from: own + 1) : best
    }

    private func firstFree(from bin: Int) -> Index? {
        var word = bin >> 6
        guard word < filled.count else { return nil }
        var bits = filled[word] & (~0 << UInt64(bin & 63))
        while bits == 0 {
            word += 1
            guard word < filled.count else { return nil }
            bits = filled[word]
        }
        return bins[word << 6 | bits.trailingZeroBitCount]
    }

    /// Gives a free block another size, and so another bin if need be.
    private mutating func resize(_ index: Index, to size: Int) {
        guard bin(blocks[index].byteCount) != bin(size) else {
            blocks[index].byteCount = size
            return
        }
        unlink(index)
        blocks[index].byteCount = size
        link(index)
    }

    private mutating func link(_ index: Index) {
        let bin = bin(blocks[index].byteCount)
        let head = bins[bin]
        blocks[index].previousFree = BlockMap.none
        blocks[index].nextFree = head
        if head != BlockMap.none { blocks[head].previousFree = index }
        bins[bin] = index
        filled[bin >> 6] |= 1 << UInt64(bin & 63)
    }

    private mutating func unlink(_ index: Index) {
        let (previous, next) = (blocks[index].previousFree, blocks[index].nextFree)
        if next != BlockMap.none { blocks[next].previousFree = previous }
        if previous != BlockMap.none {
            blocks[previous].nextFree = next
            return
        }
        let bin = bin(blocks[index].byteCount)
        bins[bin] = next
        if next == BlockMap.none { filled[bin >> 6] &= ~(1 << UInt64(bin & 63)) }
    }
}
