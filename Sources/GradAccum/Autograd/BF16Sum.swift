import CShims

/// What sums of gradients are kept in.
public enum SumFormat: Int32, CaseIterable, Sendable {
    case float32 = 0
    /// bfloat16, rounded at random to the number below or above after each addition, so that no error is left on average:
    /// 2 bytes.
    ///
    /// The random bits are those of a counter-based generator, of the update, the parameter, the element and the sample, so
    /// that law 1 holds.
    case bfloat16Stochastic = 1
    /// bfloat16, to the nearest after each addition, beside what that has added too much, in bfloat16 as well (Kahan): twice
    /// 2 bytes.
    case bfloat16Kahan = 2
    /// bfloat16, to the nearest after each addition: 2 bytes, and additions of less than about 1/512 of the sum are lost.
    case bfloat16 = 3

    var rounding: shims_rounding {
        switch self {
        case .bfloat16Stochastic: SHIMS_STOCHASTIC
        case .bfloat16Kahan: SHIMS_COMPENSATED
        case .float32, .bfloat16: SHIMS_NEAREST
        }
    }
}

/// What has become of additions to a sum in bfloat16.
public struct Stagnation: Sendable, Equatable {
    /// Numbers other than 0 that were added to elements of the sum.
    public internal(set) var additions = 0
    /// Those of them that have changed nothing, neither the sum nor what is kept beside it.
    ///
    /// Where sums are rounded at random, some do by design. Elsewhere their share tells how much of the gradient is lost.
    public internal(set) var unchanged = 0

    static func + (a: Stagnation, b: Stagnation) -> Stagnation {
        Stagnation(additions: a.additions + b.additions, unchanged: a.unchanged + b.unchanged)
    }
}

/// The sum of a leaf's gradients from one place in the graph in bfloat16, rounded after each addition.
///
/// An addition is what one sample adds to an element, or one row of an embedding, so that the roundings do not depend on how
/// samples are cut into micro-batches. Additions are numbered from the start of the window.
final class BF16Sum {
    let count: Int
    /// [count], and where what was added too much is kept, as much again.
    private let memory: Tensor
    private let format: SumFormat
    /// Of the random bits.
    private var key: UInt32 = 0
    private var ordinal = 0
    /// Nothing has been added yet: the elements mean zero, whatever they hold.
    private(set) var isEmpty = true
    private(set) var stagnation = Stagnation()

    init(_ leaf: Tensor, _ format: SumFormat) throws(GAError) {
        count = leaf.elementCount
        self.format = format
        let parts = format == .bfloat16Kahan ? 2 : 1
        memory = try Tensor(uninitialized: [parts, count], .bfloat16, for: "gradient", lifetime: .training)
    }

    /// Sets what random bits are made of before the first addition of a window.
    func begin(update: Int, parameter: Int, place: Int) {
        guard isEmpty else { return }
        let number = UInt64(truncatingIfNeeded: parameter) &<< 16 | UInt64(truncatingIfNeeded: place)
        key = Philox(seed: UInt64(truncatingIfNeeded: update)).block(number).0
    }

    func empty() {
        isEmpty = true
        ordinal = 0
        stagnation = Stagnation()
    }

    var byteCount: Int { memory.byteCount }

    private var sums: UnsafeMutablePointer<UInt16> { memory.address.assumingMemoryBound(to: UInt16.self) }
    private var compensations: UnsafeMutablePointer<UInt16>? { format == .bfloat16Kahan ? sums + count : nil }

    // MARK: Additions

    /// Adds a number to each of the elements `start ..< start + size`, which are at the given turn then; `counts` are added to.
    func add(
        _ x: UnsafePointer<Float>, to start: Int, count size: Int, turn: Int, _ counts: UnsafeMutablePointer<Int64>
    ) {
        var addition = shims_bf16_addition(
            rounding: format.rounding, accumulate: isEmpty && turn == 0 ? 0 : 1, key: key,
            ordinal: UInt32(truncatingIfNeeded: ordinal + turn), first: Int64(start))
        Runtime.kernels.add_to_bf16(
            sums + start, compensations.map { $0 + start }, x, &addition, Int64(size), counts)
    }

    /// Runs `body(tile, scratch, counts)` for tiles that together take as many turns, with all elements in each: what it adds
    /// is counted in `counts`. `scratch`: the floats that a tile works in.
    func take(
        turns: Int, tiles: Int, scratch: Int = 0,
        _ body: (Int, UnsafeMutablePointer<Float>, UnsafeMutablePointer<Int64>) throws(GAError) -> Void
    ) throws(GAError) {
        guard turns > 0 else { return }
        let counts = try sumCounts(tiles: tiles) { (counts) throws(GAError) in
            try Runtime.parallel(tiles: tiles, scratch: scratch) { (tile, scratch) throws(GAError) in
                try body(tile, scratch, counts + 2 * tile)
            }
        }
        isEmpty = false
        ordinal += turns
        stagnation = stagnation + Stagnation(additions: counts.0, unchanged: counts.1)
    }

    /// Adds a whole gradient.
    func add(_ gradient: UnsafePointer<Float>) throws(GAError) {
        let pieces = Pieces([count])
        try take(turns: 1, tiles: pieces.count) { piece, _, counts in
            let (_, start, size) = pieces[piece]
            add(gradient + start, to: start, count: size, turn: 0, counts)
        }
    }

    /// Adds a whole gradient of any floating type, times `scale`.
    func add(_ gradient: UnsafeRawPointer, _ dtype: DType, scale: Float) throws(GAError) {
        let pieces = Pieces([count])
        try take(turns: 1, tiles: pieces.count, scratch: min(count, Pieces.grain)) { piece, scratch, counts in
            let (_, start, size) = pieces[piece]
            Runtime.kernels.add_scaled(
                scratch, gradient + start * dtype.byteCount, dtype.format, scale, Int64(size), 0)
            add(scratch, to: start, count: size, turn: 0, counts)
        }
    }

    /// Adds `values` [rows.count, columns] to these rows of the leaf, one after another, with the first element of row 0 at
    /// `offset`.
    func add(
        _ values: UnsafePointer<Float>, to rows: UnsafeBufferPointer<Int64>, of columns: Int, at offset: Int
    ) throws(GAError) {
        guard !rows.isEmpty else { return }
        if isEmpty { try fillZeros() }
        isEmpty = false
        // Shared out by columns, so that each row receives its samples in order.
        let blocks = Blocks(columns, largest: 128)
        try take(turns: rows.count, tiles: blocks.count) { block, _, counts in
            let (start, size) = (blocks.start(block), blocks.count(block))
            for (turn, row) in rows.enumerated() {
                add(
                    values + turn * columns + start, to: offset + Int(row) * columns + start, count: size, turn: turn,
                    counts)
            }
        }
    }

    private func fillZeros() throws(GAError) {
        let (start, byteCount) = (memory.address, memory.byteCount)
        try Runtime.parallel(count: byteCount, grain: 1 << 18) { first, size in
            (start + first).initializeMemory(as: UInt8.self, repeating: 0, count: size)
        }
    }

    // MARK: Reading

    /// The elements `start ..< start + size` in float32.
    func load(into out: UnsafeMutablePointer<Float>, from start: Int, count size: Int) {
        Runtime.kernels.from_bf16_sums(out, sums + start, compensations.map { UnsafePointer($0) + start }, Int64(size))
    }
}
