import CShims

/// Most words of k that are multiplied before the next are packed: so many that loading and storing sums counts little,
/// and so few that a panel of `b` stays in the second-level cache and, where `a` is packed too, most of both.
@inline(always)
private func mostWords(readsA: Bool) -> Int { (readsA ? 64 : 32) * 1024 / panelColumns }
/// Columns in a panel of `b`, and rows in a panel of `a` where that has to be packed.
private let panelColumns = 16 * tileVectors
private let panelRows = 48
/// Most rows of `a` that are packed at a time, where a block has no more.
private let mostPackedRows = 192

/// Words of a panel of `b` that are on their way to the first-level cache while others are multiplied.
private let wordsAhead = 8

/// Rows that go through all panels before the next, so that their part of `a` stays in the second-level cache; whole panels.
@inline(always)
private func rowsOfBlock(words: Int) -> Int {
    let panels = 64 * 1024 / (panelRows &* (words &+ 1))
    return panelRows &* (panels > 0 ? panels : 1)
}

/// The sums of a tile.
private typealias Sums = InlineArray<24, Vector>

@inline(always)
private func zeroSums() -> Sums {
    // Not the generic initializer: its specialisation would be shared between the instruction sets.
    [
        .zero, .zero, .zero, .zero, .zero, .zero, .zero, .zero, .zero, .zero, .zero, .zero,
        .zero, .zero, .zero, .zero, .zero, .zero, .zero, .zero, .zero, .zero, .zero, .zero,
    ]
}

extension Lanes {
    /// The lanes of a vector of which `lanes` matter, all if that is 16.
    @inline(always)
    fileprivate init(first: Int, of lanes: Int) {
        self = lanes == 16 ? Lanes(first: first) : Lanes(first: first, end: first &+ lanes)
    }
}

/// Some columns of a product over some words of k, with `b` packed for them.
private struct Panel<W: Words> {
    var c: UnsafeMutablePointer<Float>
    let ldc: Int
    let a: UnsafeRawPointer
    /// Words between rows of `a`, where its words lie next to each other; words between those, where its rows do; both 0 where
    /// it is packed into panels.
    let aRow, aWord: Int
    let b: UnsafePointer<Float>
    let ldb: Int
    let rows, words: Int
    /// What the sums start with where there is nothing to add to.
    let bias: UnsafePointer<Float>?
    /// Where the sums end up in two bytes, if they do, in which format, and the elements between its rows.
    let rounded: UnsafeMutablePointer<UInt16>?
    let format: shims_format
    let ldrounded: Int
    let accumulate: Bool
    /// Whether what is computed now is stored past the caches, where it is whole lines of memory.
    let streams: Bool

    /// Computes `rows` x `vectors` vectors of `c`, or with `rounds` whole ones of `rounded`, held in registers over all
    /// words; of the last vector of a row, if it is the only one, the first `lanes`. `a` is that of the first row, with steps
    /// in words, of which one is 1.
    @inline(always)
    func computeTile(
        row: Int, rows: Int, vectors: Int, lanes: Int, rounds: Bool, _ a: UnsafeRawPointer, aRow: Int, aWord: Int
    ) {
        // The counts are constant after inlining, so that the loops unroll and the array becomes registers.
        var sums = zeroSums()
        let c = c + row &* ldc
        // A line that is neither read nor stored in the cache is not fetched for it either.
        if !rounds && (accumulate || !streams) {
            for i in rows..<(2 &* rows) {
                for j in 0..<vectors { shims_prefetch_near(c + (i &* ldc &+ 16 &* j)) }
            }
        }
        if accumulate {
            for i in 0..<rows {
                for j in 0..<vectors {
                    sums[unchecked: i &* vectors &+ j] = load(
                        c + i &* ldc, Lanes(first: j &* 16, of: lanes))
                }
            }
        } else if let bias {
            for j in 0..<vectors {
                let start = load(bias, Lanes(first: j &* 16, of: lanes))
                for i in 0..<rows { sums[unchecked: i &* vectors &+ j] = start }
            }
        }
        var (a, b) = (a, b)
        for p in 0..<words {
            if aWord == 1 && p & 15 == 0 {
                for i in rows..<(2 &* rows) { shims_prefetch_near(a + 4 &* i &* aRow) }
            }
            for j in 0..<vectors { shims_prefetch_near(b + (wordsAhead &* ldb &+ 16 &* j)) }
            for i in 0..<rows {
                let word = a.loadUnaligned(fromByteOffset: 4 &* i &* aRow, as: Float.self)
                let factor = Vector(repeating: word)
                for j in 0..<vectors {
                    let sum = i &* vectors &+ j
                    sums[unchecked: sum] = W.addProduct(
                        factor, load(b, Lanes(first: j &* 16)), to: sums[unchecked: sum])
                }
            }
            a += 4 &* aWord
            b += ldb
        }
        if rounds, let rounded {
            let out = rounded + row &* ldrounded
            if format.rawValue == SHIMS_BF16.rawValue {
                round(sums, rows: rows, vectors: vectors, SHIMS_BF16, to: out)
            } else {
                round(sums, rows: rows, vectors: vectors, SHIMS_F16, to: out)
            }
            return
        }
        if streams && lanes == 16 {
            for i in 0..<rows {
                for j in 0..<vectors {
                    shims_stream(c + (i &* ldc &+ 16 &* j), sums[unchecked: i &* vectors &+ j])
                }
            }
            return
        }
        for i in 0..<rows {
            for j in 0..<vectors {
                store(
                    sums[unchecked: i &* vectors &+ j], c + i &* ldc,
                    Lanes(first: j &* 16, of: lanes))
            }
        }
    }

    /// Gives the sums of a tile in two bytes. It has one vector to a row, or an even number.
    @inline(always)
    private func round(
        _ sums: Sums, rows: Int, vectors: Int, _ format: shims_format, to out: UnsafeMutablePointer<UInt16>
    ) {
        for i in 0..<rows {
            let out = out + i &* ldrounded
            if vectors == 1 {
                let sum = sums[unchecked: i]
                store(format.rawValue == SHIMS_BF16.rawValue ? toBF16(sum) : toF16(sum), out, Lanes(first: 0))
            }
            for j in 0..<(vectors / 2) {
                let low = i &* vectors &+ 2 &* j
                storeRounded(sums[unchecked: low], sums[unchecked: low &+ 1], out + 32 &* j, format)
            }
        }
    }

    /// Gives all rows of up to a vector of columns in two bytes.
    @inline(never)
    private func round(columns: Int, to rounded: UnsafeMutablePointer<UInt16>) {
        for row in 0..<rows { fromF32(rounded + row &* ldrounded, format, c + row &* ldc, Int64(columns)) }
    }

    /// Computes all rows of whole vectors of columns, as many as a tile has.
    @inline(never)
    func computeWide() { compute(vectors: tileVectors, lanes: 16, rounds: false) }

    /// The same, in two bytes alone.
    @inline(never)
    func computeWideRounded() { compute(vectors: tileVectors, lanes: 16, rounds: true) }

    /// Computes all rows of one vector of columns, or of the first `lanes` of it.
    @inline(never)
    func computeNarrow(lanes: Int) {
        compute(vectors: 1, lanes: lanes, rounds: false)
        if let rounded { round(columns: lanes, to: rounded) }
    }

    @inline(always)
    private func compute(vectors: Int, lanes: Int, rounds: Bool) {
        if aRow > 0 {
            compute(from: 0, to: rows, vectors: vectors, lanes: lanes, rounds: rounds, a, aRow: aRow, aWord: 1)
            return
        }
        var row = 0
        while row < rows {
            let panel = aWord > 0 ? rows : row &+ panelRows <= rows ? panelRows : 16
            compute(
                from: row, to: row &+ panel < rows ? row &+ panel : rows, vectors: vectors, lanes: lanes,
                rounds: rounds, a + 4 &* row &* words, aRow: 1, aWord: aWord > 0 ? aWord : panel)
            row &+= panel
        }
    }

    /// Computes some rows; `a` is that of the first.
    @inline(always)
    private func compute(
        from first: Int, to end: Int, vectors: Int, lanes: Int, rounds: Bool, _ a: UnsafeRawPointer, aRow: Int,
        aWord: Int
    ) {
        var row = first
        @inline(always)
        func computeTile(rows: Int) {
            self.computeTile(
                row: row, rows: rows, vectors: vectors, lanes: lanes, rounds: rounds, a + 4 &* (row &- first) &* aRow,
                aRow: aRow, aWord: aWord)
            row &+= rows
        }
        while row &+ tileRows <= end { computeTile(rows: tileRows) }
        if tileRows > 4 && row &+ 4 <= end { computeTile(rows: 4) }
        if tileRows > 2 && row &+ 2 <= end { computeTile(rows: 2) }
        while row < end { computeTile(rows: 1) }
    }
}

/// The parts of a product's scratch memory, in floats.
private struct Scratch {
    let b, a, total: Int
    /// Words that are packed at a time, and rows of `a`: whole blocks, but enough that whole lines of memory are read.
    let words, rows: Int
    /// Of the sums, where `c` cannot hold them; else 0.
    let ldc: Int

    init<W: Words>(
        _: W.Type, m: Int, n: Int, k: Int, _ formatOfC: shims_format, readsA: Bool, readsB: Bool = false
    ) {
        let columns = (n &+ 15) & ~15
        // Nearly equal parts, in whole vectors.
        let all = (k &+ W.elements &- 1) / W.elements
        let most = mostWords(readsA: readsA)
        let parts = all == 0 ? 1 : (all &+ most &- 1) / most
        words = ((all &+ parts &- 1) / parts &+ 15) & ~15
        b = readsB ? 0 : columns &* words
        let block = rowsOfBlock(words: words)
        rows = block < mostPackedRows ? mostPackedRows / block &* block : block
        // The last part is packed where it ends within a word.
        a = readsA && k % W.elements == 0 ? 0 : (rows < m ? rows : (m &+ 15) & ~15) &* words
        ldc = formatOfC.rawValue == SHIMS_F32.rawValue ? 0 : columns
        total = b &+ a &+ m &* ldc
    }
}

/// The floats of scratch memory that a product needs.
func matrixProductScratch(
    _ m: Int64, _ n: Int64, _ k: Int64, _ formatOfC: shims_format, _ arithmetic: shims_format,
    _ a: UnsafePointer<shims_matrix>?
) -> Int64 {
    let isPaired = arithmetic.rawValue == SHIMS_BF16.rawValue
    func total(readsA: Bool) -> Int {
        isPaired
            ? Scratch(PairWords.self, m: Int(m), n: Int(n), k: Int(k), formatOfC, readsA: readsA).total
            : Scratch(SingleWords.self, m: Int(m), n: Int(n), k: Int(k), formatOfC, readsA: readsA).total
    }
    guard let a else { return Int64(max(total(readsA: false), total(readsA: true))) }
    let factor = Factor(rows: a.pointee, arithmetic)
    let readsA =
        isPaired
        ? factor.isReadInPlace(as: PairWords.self, count: Int(k))
        : factor.isReadInPlace(as: SingleWords.self, count: Int(k))
    return Int64(total(readsA: readsA))
}

/// The floats that `packColumns` writes.
func packedColumns(_ k: Int64, _ n: Int64, _ arithmetic: shims_format) -> Int64 {
    let elements = arithmetic.rawValue == SHIMS_BF16.rawValue ? PairWords.elements : SingleWords.elements
    return ((n &+ 15) & ~15) &* ((k &+ Int64(elements) &- 1) / Int64(elements))
}

/// Packs all columns of b over all of k, for products that read it more than once.
func packColumns(
    _ packed: UnsafeMutablePointer<Float>, _ b: UnsafePointer<shims_matrix>, _ k: Int64, _ n: Int64,
    _ arithmetic: shims_format
) {
    let columns = Factor(columns: b.pointee, arithmetic)
    if arithmetic.rawValue == SHIMS_BF16.rawValue {
        columns.packPanels(PairWords.self, packed, width: panelColumns, lines: Int(n), first: 0, end: Int(k))
    } else {
        columns.packPanels(SingleWords.self, packed, width: panelColumns, lines: Int(n), first: 0, end: Int(k))
    }
}

/// `c[i][j] (+)=` the sum over p of `a[i][p] * b[p][j]`: one chain of multiply-adds per element in order of p, `c` or
/// the bias first. Neither the tile nor the cut of k shows in a bit of the result.
func matrixProduct(_ product: UnsafePointer<shims_product>, _ scratch: UnsafeMutablePointer<Float>) {
    if product.pointee.arithmetic.rawValue == SHIMS_BF16.rawValue {
        multiply(PairWords.self, product.pointee, scratch)
    } else {
        multiply(SingleWords.self, product.pointee, scratch)
    }
}

@inline(never)
private func multiply<W: Words>(_: W.Type, _ product: shims_product, _ scratch: UnsafeMutablePointer<Float>) {
    let (m, n, k) = (Int(product.m), Int(product.n), Int(product.k))
    let a = Factor(rows: product.a, product.arithmetic)
    let b = Factor(columns: product.b, product.arithmetic)
    let readsA = a.isReadInPlace(as: W.self, count: k)
    let places = Scratch(
        W.self, m: m, n: n, k: k, product.c_format, readsA: readsA, readsB: product.packed_b != nil)
    let packedA = scratch + places.b
    let packedK = (Int(product.packed_k) &+ W.elements &- 1) / W.elements
    let isRounded = product.c_format.rawValue != SHIMS_F32.rawValue
    let halves = product.c.assumingMemoryBound(to: UInt16.self)
    let sums = isRounded ? scratch + (places.b &+ places.a) : product.c.assumingMemoryBound(to: Float.self)
    let ldc = isRounded ? places.ldc : Int(product.ldc)
    // What is rounded stays in the caches: it is half as much, and the next to be read.
    let streams =
        product.streams != 0 && !isRounded && Int(bitPattern: product.c) & 63 == 0 && product.ldc & 15 == 0
    var first = 0
    repeat {
        let next = first &+ places.words &* W.elements
        let end = next < k ? next : k
        let words = (end &- first &+ W.elements &- 1) / W.elements
        if product.packed_b == nil {
            b.packPanels(W.self, scratch, width: panelColumns, lines: n, first: first, end: end)
        }
        let readsPart = readsA && (end &- first) % W.elements == 0
        let block = rowsOfBlock(words: places.words)
        var group = 0
        while group < m {
            let rows = group &+ places.rows < m ? places.rows : m &- group
            let lines = a.lines(from: group)
            var (aAddress, aRow, aWord) = (UnsafeRawPointer(packedA), 0, 0)
            if readsPart && a.along == 1 {
                (aAddress, aRow) = (lines.address + 4 &* (first / W.elements), lines.line / W.elements)
            } else if readsPart {
                (aAddress, aWord) = (lines.address + 4 &* first &* a.along, a.along)
            } else if a.along == 1 {
                aRow = places.words
                lines.packAlong(W.self, packedA, aRow, lines: rows, first: first, end: end)
            } else {
                lines.packPanels(W.self, packedA, width: panelRows, lines: rows, first: first, end: end)
            }
            var row = 0
            while row < rows {
                var column = 0
                while column < n {
                    let isWide = column &+ panelColumns <= n
                    let width = isWide ? panelColumns : n &- column < 16 ? n &- column : 16
                    let ldb = isWide ? panelColumns : 16
                    let packedB =
                        product.packed_b.map { $0 + (column &* packedK &+ first / W.elements &* ldb) }
                        ?? UnsafePointer(scratch + column &* words)
                    let panel = Panel<W>(
                        c: sums + ((group &+ row) &* ldc &+ column), ldc: ldc,
                        a: aAddress + 4 &* row &* (aWord > 0 ? 1 : aRow > 0 ? aRow : words), aRow: aRow, aWord: aWord,
                        b: packedB, ldb: ldb,
                        rows: row &+ block < rows ? block : rows &- row, words: words,
                        bias: product.bias.map { $0 + column },
                        rounded: isRounded && end == k ? halves + ((group &+ row) &* Int(product.ldc) &+ column) : nil,
                        format: product.c_format, ldrounded: Int(product.ldc),
                        accumulate: product.accumulate != 0 || first > 0,
                        streams: streams && end == k)
                    if !isWide {
                        panel.computeNarrow(lanes: width)
                    } else if panel.rounded == nil {
                        panel.computeWide()
                    } else {
                        panel.computeWideRounded()
                    }
                    column &+= width
                }
                row &+= block
            }
            group &+= rows
        }
        first = end
    } while first < k
    if streams { shims_stream_end() }
}
