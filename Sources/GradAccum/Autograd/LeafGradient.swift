import CShims

/// The uses of a leaf in one graph, numbered in the order of the forward pass.
struct LeafUses {
    private(set) var count = 0
    /// Those that reach few rows of the leaf.
    private(set) var byRows: [Int] = []

    /// Adds a use and returns its number.
    mutating func add(byRows isByRows: Bool) -> Int {
        if isByRows { byRows.append(count) }
        count += 1
        return count - 1
    }
}

/// Where the gradient of one use of a leaf is added up.
enum GradientPlace {
    case dense(GradientBuffer)
    case rows(RowGradients)
}

/// The gradient of one leaf: a place per use, each with a chain of additions of its own.
///
/// A use that reaches few rows has a place by rows, unless all uses do: the first of these then has a dense one. So there
/// is always one that the others can be added to.
final class LeafGradient {
    private(set) var dense: [GradientBuffer] = []
    private var rows: [RowGradients] = []
    /// Which uses in the graph at hand have a place by rows.
    private var usesByRows: [Int] = []
    private var isFolded = false

    /// Makes the places that a graph needs and keeps those that there are.
    func prepare(_ leaf: Tensor, _ uses: LeafUses) throws(GAError) {
        usesByRows = uses.byRows
        if usesByRows.count == uses.count && uses.count > 0 { usesByRows.removeFirst() }
        while dense.count < uses.count - usesByRows.count { dense.append(try GradientBuffer(shape: leaf.shape)) }
        while rows.count < usesByRows.count { rows.append(try RowGradients(leaf)) }
    }

    /// Makes the place that a gradient from elsewhere is added to.
    func prepareDense(_ leaf: Tensor) throws(GAError) {
        if dense.isEmpty { dense.append(try GradientBuffer(shape: leaf.shape)) }
    }

    /// The place of a use in the graph that was last prepared for.
    func place(ofUse use: Int) -> GradientPlace {
        let before = usesByRows.count { $0 < use }
        return before < usesByRows.count && usesByRows[before] == use
            ? .rows(rows[before]) : .dense(dense[use - before])
    }

    /// Empties all places.
    func empty() {
        for buffer in dense { buffer.isEmpty = true }
        for rows in rows { rows.empty() }
        isFolded = false
    }

    /// Frees the last places, as far as nothing was added to them, but for one.
    func freeUnused() {
        while let last = rows.last, last.isEmpty { rows.removeLast() }
        while dense.count > 1, dense[dense.count - 1].isEmpty { dense.removeLast() }
    }

    /// Frees all places.
    func free() {
        dense = []
        rows = []
    }

    /// Where ``fold(from:count:)`` leaves the sum of all places, or nil if nothing was added to any.
    var total: GradientBuffer? {
        dense.first { !$0.isEmpty } ?? (rows.allSatisfy { $0.isEmpty } ? nil : dense.first)
    }

    /// Adds up the elements `start ..< start + count` of all places, the dense ones first, each kind in the order of uses.
    ///
    /// Returns the sum of the squares of the result.
    func fold(from start: Int, count: Int) -> Double {
        guard let total else { return 0 }
        let sum = total.tensor.floats + start
        if total.isEmpty { Runtime.kernels.fill(sum, 0, Int64(count)) }
        if isFolded { return Runtime.kernels.sum_of_squares(sum, Int64(count)) }
        var squares: Double?
        for other in dense where !other.isEmpty && other !== total {
            squares = Runtime.kernels.fold_sum_of_squares(sum, other.tensor.floats + start, Int64(count))
        }
        // What rows are added to is still in the cache when its squares are added up again.
        for rows in rows where rows.add(to: total.tensor.floats, from: start, count: count) { squares = nil }
        return squares ?? Runtime.kernels.sum_of_squares(sum, Int64(count))
    }

    /// Says that ``total`` holds the sum of all places, until they are emptied.
    func keepTotal() {
        total?.isEmpty = false
        isFolded = true
    }

    /// Those to add up: all of them, or the total where that holds the others.
    private var parts: (dense: [GradientBuffer], rows: [RowGradients]) {
        isFolded ? (total.map { [$0] } ?? [], []) : (dense.filter { !$0.isEmpty }, rows)
    }

    /// The sum of the squares of the elements `start ..< start + count` of all places, each for itself: finite if and only
    /// if they are.
    func sumOfSquares(from start: Int, count: Int) -> Double {
        var squares = 0.0
        for buffer in dense where !buffer.isEmpty {
            squares += Runtime.kernels.sum_of_squares(buffer.tensor.floats + start, Int64(count))
        }
        for rows in rows { squares += rows.sumOfSquares(from: start, count: count) }
        return squares
    }

    /// Of the memory of all places.
    var byteCount: Int {
        dense.reduce(0) { $0 + $1.tensor.byteCount } + rows.reduce(0) { $0 + $1.byteCount }
    }

    /// The sum of all places as a new tensor, in the order of ``fold(from:count:)``.
    func sum(shape: [Int]) throws(GAError) -> Tensor {
        let sum = try Tensor.zeros(shape)
        let (filled, rows) = parts
        try elementwise(sum.elementCount) { start, count in
            for (position, buffer) in filled.enumerated() {
                Runtime.kernels.add_scaled(
                    sum.floats + start, buffer.tensor.floats + start, SHIMS_F32, 1, Int64(count), position == 0 ? 0 : 1)
            }
            for rows in rows { _ = rows.add(to: sum.floats, from: start, count: count) }
        }
        return sum
    }
}
