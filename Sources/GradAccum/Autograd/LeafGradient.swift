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
    case bf16(BF16Sum)
    case rows(RowGradients)
}

/// The gradient of one leaf: a place per use, each with a chain of additions of its own.
///
/// A use that reaches few rows has a place by rows, unless all uses do: the first of these then has a dense one. So there
/// is always one that the others can be added to. Dense places are in float32 or all in bfloat16; those by rows are few, and
/// in float32.
final class LeafGradient {
    private let format: SumFormat
    // One call after another reads and changes these, and none is entered again from within: that the runtime need not find
    // out at each access, which takes longer than to add up a small gradient.
    @exclusivity(unchecked) private(set) var dense: [GradientBuffer] = [] {
        didSet { firstDense = dense.first.map { Unmanaged.passUnretained($0) } }
    }
    /// The first of them, as long as it is there: to get it counts no reference.
    private(set) var firstDense: Unmanaged<GradientBuffer>?
    @exclusivity(unchecked) private(set) var rounded: [BF16Sum] = []
    @exclusivity(unchecked) private var rows: [RowGradients] = []
    /// Which uses in the graph at hand have a place by rows.
    @exclusivity(unchecked) private var usesByRows: [Int] = []
    private var isFolded = false
    private let lifetime: Arena.Lifetime
    /// A backward pass has added to whole places since this was set to false.
    var hasNewSums = false

    init(_ format: SumFormat = .float32, lifetime: Arena.Lifetime = .training) {
        self.format = format
        self.lifetime = lifetime
    }

    /// Makes the places that a graph needs and keeps those that there are. `update`: the number of the update to come.
    func prepare(_ leaf: Tensor, _ uses: LeafUses, update: Int = 0) throws(GAError) {
        usesByRows = uses.byRows
        if usesByRows.count < uses.count { hasNewSums = true }
        if usesByRows.count == uses.count && uses.count > 0 { usesByRows.removeFirst() }
        let denseCount = uses.count - usesByRows.count
        if format == .float32 {
            while dense.count < denseCount { dense.append(try GradientBuffer(shape: leaf.shape, lifetime)) }
            try settle()
        } else {
            try prepareRounded(leaf, places: denseCount, update: update)
        }
        while rows.count < usesByRows.count { rows.append(try RowGradients(leaf, lifetime)) }
    }

    /// Makes the place that a gradient from elsewhere is added to.
    func prepareDense(_ leaf: Tensor, update: Int) throws(GAError) {
        guard format == .float32 else { return try prepareRounded(leaf, places: 1, update: update) }
        if dense.isEmpty { dense.append(try GradientBuffer(shape: leaf.shape, lifetime)) }
    }

    private func prepareRounded(_ leaf: Tensor, places: Int, update: Int) throws(GAError) {
        while rounded.count < places { rounded.append(try BF16Sum(leaf, format)) }
        for (place, sum) in rounded.enumerated() {
            sum.begin(update: update, parameter: leaf.indexInOwner, place: place)
        }
    }

    /// The place of a use in the graph that was last prepared for.
    func place(ofUse use: Int) -> GradientPlace {
        let before = usesByRows.count { $0 < use }
        return before < usesByRows.count && usesByRows[before] == use
            ? .rows(rows[before])
            : format == .float32 ? .dense(dense[use - before]) : .bf16(rounded[use - before])
    }

    /// Adds a part of a gradient from elsewhere to the place that was made for it: see ``GradientBuffer/add(_:_:from:count:)``.
    func add(_ gradient: UnsafeRawPointer, _ addition: Addition, from start: Int, count: Int) {
        firstDense!._withUnsafeGuaranteedRef { $0.add(gradient, addition, from: start, count: count) }
    }

    func didAdd(_ addition: Addition) { firstDense!._withUnsafeGuaranteedRef { $0.didAdd(addition) } }

    /// Empties all places.
    func empty() {
        for buffer in dense { buffer.empty() }
        for sum in rounded { sum.empty() }
        for rows in rows { rows.empty() }
        (isFolded, hasNewSums) = (false, false)
    }

    /// Adds up what places hold of gradients that came one after another, before they are read.
    func settle() throws(GAError) {
        for buffer in dense { try buffer.settle() }
    }

    /// Frees the last places, as far as nothing was added to them, but for one.
    func freeUnused() {
        while let last = rows.last, last.isEmpty { rows.removeLast() }
        while dense.count > 1, dense[dense.count - 1].isEmpty { dense.removeLast() }
        while rounded.count > 1, rounded[rounded.count - 1].isEmpty { rounded.removeLast() }
    }

    /// Frees all places.
    func free() {
        dense = []
        rounded = []
        rows = []
    }

    /// Whether anything was added to any place.
    var isUsed: Bool {
        dense.contains { !$0.isEmpty } || rounded.contains { !$0.isEmpty } || rows.contains { !$0.isEmpty }
    }

    /// Where ``fold(from:count:)`` leaves the sum of all places, or nil if nothing was added to any, or they are in bfloat16.
    var total: GradientBuffer? {
        dense.first { !$0.isEmpty } ?? (rows.allSatisfy { $0.isEmpty } ? nil : dense.first)
    }

    /// Adds up the elements `start ..< start + count` of all places, the dense ones first, each kind in the order of uses.
    ///
    /// Returns the sum of the squares of the result.
    func fold(from start: Int, count: Int) -> Double {
        guard format == .float32 else { return sumOfSquares(from: start, count: count) }
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
        total?.fill()
        isFolded = true
    }

    /// Those to add up: all of them, or the total where that holds the others.
    private var parts: (dense: [GradientBuffer], rows: [RowGradients]) {
        isFolded ? (total.map { [$0] } ?? [], []) : (dense.filter { !$0.isEmpty }, rows)
    }

    /// The sum of the squares of the elements `start ..< start + count` of all places, each for itself or, in bfloat16, added
    /// up: finite if and only if they are.
    func sumOfSquares(from start: Int, count: Int) -> Double {
        var squares = 0.0
        guard format == .float32 else {
            forEachBlock(from: start, count: count) { first, block in
                load(into: block.baseAddress!, from: first, count: block.count)
                squares += Runtime.kernels.sum_of_squares(block.baseAddress!, Int64(block.count))
            }
            return squares
        }
        for buffer in dense where !buffer.isEmpty {
            squares += Runtime.kernels.sum_of_squares(buffer.tensor.floats + start, Int64(count))
        }
        for rows in rows { squares += rows.sumOfSquares(from: start, count: count) }
        return squares
    }

    /// The sum of the elements `start ..< start + count` of all places in bfloat16, in float32 and in the order of uses, and of
    /// those by rows after them.
    func load(into out: UnsafeMutablePointer<Float>, from start: Int, count: Int) {
        var isFirst = true
        for sum in rounded where !sum.isEmpty {
            if isFirst {
                sum.load(into: out, from: start, count: count)
            } else {
                forEachBlock(from: start, count: count) { first, block in
                    sum.load(into: block.baseAddress!, from: first, count: block.count)
                    Runtime.kernels.add_scaled(
                        out + (first - start), block.baseAddress!, SHIMS_F32, 1, Int64(block.count), 1)
                }
            }
            isFirst = false
        }
        if isFirst { Runtime.kernels.fill(out, 0, Int64(count)) }
        for rows in rows { _ = rows.add(to: out - start, from: start, count: count) }
    }

    /// Runs `body` for few elements at a time: the first of them, and room for as many.
    private func forEachBlock(
        from start: Int, count: Int, _ body: (Int, UnsafeMutableBufferPointer<Float>) -> Void
    ) {
        withUnsafeTemporaryAllocation(of: Float.self, capacity: 256) { scratch in
            for first in Swift.stride(from: start, to: start + count, by: 256) {
                body(first, UnsafeMutableBufferPointer(rebasing: scratch[..<min(256, start + count - first)]))
            }
        }
    }

    /// What has become of additions in bfloat16 since the places were emptied.
    var stagnation: Stagnation { rounded.reduce(Stagnation()) { $0 + $1.stagnation } }

    /// Of the memory of all places.
    var byteCount: Int {
        dense.reduce(0) { $0 + $1.tensor.byteCount } + rounded.reduce(0) { $0 + $1.byteCount }
            + rows.reduce(0) { $0 + $1.byteCount }
    }

    /// The sum of all places as a new tensor, in the order of ``fold(from:count:)``.
    func sum(shape: [Int]) throws(GAError) -> Tensor {
        guard format == .float32 else {
            let sum = try Tensor(uninitialized: shape, for: "gradient")
            try elementwise(sum.elementCount) { start, count in
                load(into: sum.floats + start, from: start, count: count)
            }
            return sum
        }
        try settle()
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
