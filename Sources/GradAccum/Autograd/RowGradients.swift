import CShims

/// The sum of a leaf's gradients from one use that reaches few of its rows, with memory for the rows that were reached.
///
/// A row gets a slot when something is first added to it. Slots lie in chunks that stay for the next window. Which row has
/// which slot is a sparse set, emptied without a look at it (Briggs and Torczon, ACM LOPLAS 2(1-4), 1993).
final class RowGradients {
    private static let largestChunk = 1 << 18

    private let lifetime: Arena.Lifetime
    private let columns: Int
    private let slotsPerChunk: Int
    /// Behind the two lists below. [2, rows]
    private let index: Tensor
    /// Per row its slot, if the slot is in use and its row is this one.
    private let slotOfRow: UnsafeMutablePointer<Int32>
    private let rowOfSlot: UnsafeMutablePointer<Int32>
    private var chunks: [Tensor] = []
    private var addresses: [UnsafeMutablePointer<Float>] = []
    private var count = 0

    /// For a leaf that ``firstRow(of:)`` has found to be one of rows.
    init(_ leaf: Tensor, _ lifetime: Arena.Lifetime) throws(GAError) {
        self.lifetime = lifetime
        columns = leaf.shape[leaf.rank - 1]
        let rows = leaf.elementCount / columns
        slotsPerChunk = min(rows, max(1, RowGradients.largestChunk / columns))
        index = try Tensor(uninitialized: [2, rows], .int32, for: "gradient", lifetime: lifetime)
        slotOfRow = index.address.assumingMemoryBound(to: Int32.self)
        slotOfRow.initialize(repeating: 0, count: 2 * rows)
        rowOfSlot = slotOfRow + rows
        try reserve(1)
    }

    /// The row of its root at which a table [rows, c] starts, or nil if its rows are not rows of its root, or so short
    /// that the two lists would take as much memory as they do, or none.
    static func firstRow(of table: Tensor) -> Int? {
        let (columns, root) = (table.shape[1], table.root)
        let offset = table.offset - root.offset
        guard table.isContiguous, columns > 2, root.elementCount > 0, root.shape.last == columns, offset % columns == 0,
            root.elementCount / columns <= Int(Int32.max)
        else { return nil }
        return offset / columns
    }

    /// Nothing has been added yet.
    var isEmpty: Bool { count == 0 }

    func empty() { count = 0 }

    /// Adds `values` [rows.count, columns] to these rows of the leaf, one after another.
    ///
    /// Errors: `outOfMemory`; nothing was added then.
    func add(_ values: UnsafePointer<Float>, to rows: UnsafeBufferPointer<Int64>, after firstRow: Int) throws(GAError) {
        var used = count
        for row in rows where slot(of: firstRow + Int(row), below: used) == nil {
            slotOfRow[firstRow + Int(row)] = Int32(used)
            rowOfSlot[used] = Int32(firstRow + Int(row))
            used += 1
        }
        try reserve(used)
        let new = count..<used
        count = used
        // Shared out by columns, so that each row receives its samples in order.
        try Runtime.parallel(count: columns, grain: 128) { start, size in
            for slot in new { Runtime.kernels.fill(address(slot) + start, 0, Int64(size)) }
            for (position, row) in rows.enumerated() {
                let slot = Int(slotOfRow[firstRow + Int(row)])
                Runtime.kernels.add_scaled(
                    address(slot) + start, values + position * columns + start, SHIMS_F32, 1, Int64(size), 1)
            }
        }
    }

    /// Adds what there is of the elements `start ..< start + size` of the leaf to `sum`, which holds all of them.
    ///
    /// Returns whether there was anything.
    func add(to sum: UnsafeMutablePointer<Float>, from start: Int, count size: Int) -> Bool {
        guard !isEmpty && size > 0 else { return false }
        var found = false
        let end = start + size
        for row in (start / columns)...((end - 1) / columns) {
            guard let slot = slot(of: row, below: count) else { continue }
            let first = max(start, row * columns)
            let last = min(end, (row + 1) * columns)
            Runtime.kernels.add_scaled(
                sum + first, address(slot) + (first - row * columns), SHIMS_F32, 1, Int64(last - first), 1)
            found = true
        }
        return found
    }

    /// The sum of the squares of what there is of the elements `start ..< start + size` of the leaf.
    func sumOfSquares(from start: Int, count size: Int) -> Double {
        guard !isEmpty && size > 0 else { return 0 }
        var squares = 0.0
        let end = start + size
        for row in (start / columns)...((end - 1) / columns) {
            guard let slot = slot(of: row, below: count) else { continue }
            let first = max(start, row * columns)
            let last = min(end, (row + 1) * columns)
            squares += Runtime.kernels.sum_of_squares(address(slot) + (first - row * columns), Int64(last - first))
        }
        return squares
    }

    /// Of the memory that it keeps.
    var byteCount: Int { chunks.reduce(index.byteCount) { $0 + $1.byteCount } }

    private func slot(of row: Int, below used: Int) -> Int? {
        let slot = Int(slotOfRow[row])
        return slot < used && Int(rowOfSlot[slot]) == row ? slot : nil
    }

    private func address(_ slot: Int) -> UnsafeMutablePointer<Float> {
        let (chunk, place) = slot.quotientAndRemainder(dividingBy: slotsPerChunk)
        return addresses[chunk] + place * columns
    }

    private func reserve(_ slots: Int) throws(GAError) {
        while chunks.count * slotsPerChunk < slots {
            let chunk = try Tensor(uninitialized: [slotsPerChunk, columns], for: "gradient", lifetime: lifetime)
            chunks.append(chunk)
            addresses.append(chunk.floats)
        }
    }
}
