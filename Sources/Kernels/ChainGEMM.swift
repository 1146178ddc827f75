/// Some columns of a product, and of `b` so many rows that they stay in the first-level cache.
private struct ChainPanel {
    var c: UnsafeMutablePointer<Float>
    let ldc: Int
    let a: UnsafePointer<Float>
    let aRow, aCol: Int
    var b: UnsafePointer<Float>
    var ldb: Int
    let m, k: Int
    let accumulate: Bool

    static let depth = 256

    /// Computes `rows` x `vectors` vectors of `c`, held in registers over all of `k`; of the last vector of a row,
    /// if it is the only one, the first `lanes`.
    @inline(always)
    func computeTile(row: Int, rows: Int, vectors: Int, lanes: Int) {
        // The counts are constant after inlining, so that the loops unroll and the array becomes registers.
        var sums = zeroRegisters()
        let c = c + row &* ldc
        if accumulate {
            for i in 0..<rows {
                for j in 0..<vectors {
                    sums[unchecked: i &* vectors &+ j] = load(
                        c + i &* ldc, Lanes(first: j &* 16, end: j &* 16 &+ lanes))
                }
            }
        }
        var (a, b) = (a + row &* aRow, b)
        for _ in 0..<k {
            for i in 0..<rows {
                let factor = Vector(repeating: a[i &* aRow])
                for j in 0..<vectors {
                    let sum = i &* vectors &+ j
                    sums[unchecked: sum] = multiplyAdd(factor, load(b, Lanes(first: j &* 16)), sums[unchecked: sum])
                }
            }
            a += aCol
            b += ldb
        }
        for i in 0..<rows {
            for j in 0..<vectors {
                store(
                    sums[unchecked: i &* vectors &+ j], c + i &* ldc,
                    Lanes(first: j &* 16, end: j &* 16 &+ lanes))
            }
        }
    }

    /// Computes all rows of the first `vectors` vectors of columns.
    @inline(always)
    func compute(vectors: Int, lanes: Int = 16) {
        var row = 0
        @inline(always)
        func computeTile(rows: Int) {
            self.computeTile(row: row, rows: rows, vectors: vectors, lanes: lanes)
            row &+= rows
        }
        while row &+ tileRows <= m { computeTile(rows: tileRows) }
        if tileRows > 4 && row &+ 4 <= m { computeTile(rows: 4) }
        if tileRows > 2 && row &+ 2 <= m { computeTile(rows: 2) }
        if row < m { computeTile(rows: 1) }
    }

    /// The same, with the columns of `b` first copied next to each other, filled up to whole vectors.
    @inline(always)
    func computeFromCopy(vectors: Int, lanes: Int = 16) {
        let zeros = zeroRegisters()
        var copy: InlineArray<32, Registers> = [
            zeros, zeros, zeros, zeros, zeros, zeros, zeros, zeros,
            zeros, zeros, zeros, zeros, zeros, zeros, zeros, zeros,
            zeros, zeros, zeros, zeros, zeros, zeros, zeros, zeros,
            zeros, zeros, zeros, zeros, zeros, zeros, zeros, zeros,
        ]
        withUnsafeMutableBytes(of: &copy) {
            let copy = $0.baseAddress.unsafelyUnwrapped.assumingMemoryBound(to: Float.self)
            for p in 0..<k {
                for j in 0..<vectors {
                    let row = load(b + p &* ldb, Lanes(first: j &* 16, end: j &* 16 &+ lanes))
                    store(row, copy, Lanes(first: (p &* vectors &+ j) &* 16))
                }
            }
            var panel = self
            panel.b = UnsafePointer(copy)
            panel.ldb = 16 &* vectors
            panel.compute(vectors: vectors, lanes: lanes)
        }
    }
}

/// `c[i][j] (+)=` the sum over p of `a[i * aRow + p * aCol] * b[p][j]`: one chain of multiply-adds per element in
/// order of p, `c` loaded first. Neither the tile nor the cut of `k` shows in a bit of the result.
func chainGEMM(
    _ c: UnsafeMutablePointer<Float>, _ ldc: Int64, _ a: UnsafePointer<Float>, _ aRow: Int64, _ aCol: Int64,
    _ b: UnsafePointer<Float>, _ ldb: Int64, _ m: Int64, _ n: Int64, _ k: Int64, _ accumulate: Int32
) {
    let n = Int(n)
    var first: Int64 = 0
    repeat {
        var panel = ChainPanel(
            c: c, ldc: Int(ldc), a: a + Int(first &* aCol), aRow: Int(aRow), aCol: Int(aCol),
            b: b + Int(first &* ldb), ldb: Int(ldb), m: Int(m), k: min(ChainPanel.depth, Int(k &- first)),
            accumulate: accumulate != 0 || first > 0)
        var column = 0
        @inline(always)
        func forEachPanel(vectors: Int, _ compute: () -> Void) {
            while column &+ 16 &* vectors <= n {
                compute()
                column &+= 16 &* vectors
                panel.c += 16 &* vectors
                panel.b += 16 &* vectors
            }
        }
        @inline(always)
        func computeRow() { panel.computeTile(row: 0, rows: 1, vectors: rowVectors, lanes: 16) }
        @inline(always)
        func computeWide() {
            if m > 64 { panel.computeFromCopy(vectors: tileVectors) } else { panel.compute(vectors: tileVectors) }
        }
        @inline(always)
        func computeNarrow() { panel.compute(vectors: 1) }
        if m == 1 { forEachPanel(vectors: rowVectors, computeRow) }
        forEachPanel(vectors: tileVectors, computeWide)
        if tileVectors > 1 { forEachPanel(vectors: 1, computeNarrow) }
        if column < n { panel.computeFromCopy(vectors: 1, lanes: n &- column) }
        first &+= Int64(ChainPanel.depth)
    } while first < k
}
