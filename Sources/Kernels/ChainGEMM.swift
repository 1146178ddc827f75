/// A tile of `c` held in registers over all of `k`: `rows` x `vectors` vectors, the last of which may be
/// partial if it is the only one.
@inline(always)
private func chainTile(
    rows: Int, vectors: Int, lanes: Int, _ c: UnsafeMutablePointer<Float>, _ ldc: Int,
    _ a: UnsafePointer<Float>, _ aRow: Int, _ aCol: Int, _ b: UnsafePointer<Float>, _ ldb: Int, _ k: Int,
    _ accumulate: Bool
) {
    // The counts are constant after inlining, so that the loops unroll and the array becomes registers.
    var sums = zeroRegisters()
    if accumulate {
        for row in 0..<rows {
            for vector in 0..<vectors {
                sums[unchecked: row &* vectors &+ vector] = load(
                    c + row &* ldc, Lanes(first: vector &* 16, end: vector &* 16 &+ lanes))
            }
        }
    }
    var (a, b) = (a, b)
    for _ in 0..<k {
        for row in 0..<rows {
            let factor = Vector(repeating: a[row &* aRow])
            for vector in 0..<vectors {
                let place = row &* vectors &+ vector
                sums[unchecked: place] = multiplyAdd(
                    factor, load(b, Lanes(first: vector &* 16)), sums[unchecked: place])
            }
        }
        a += aCol
        b += ldb
    }
    for row in 0..<rows {
        for vector in 0..<vectors {
            store(
                sums[unchecked: row &* vectors &+ vector], c + row &* ldc,
                Lanes(first: vector &* 16, end: vector &* 16 &+ lanes))
        }
    }
}

/// All rows of `vectors` columns of `c`.
@inline(always)
private func chainPanel(
    vectors: Int, lanes: Int, _ c: UnsafeMutablePointer<Float>, _ ldc: Int, _ a: UnsafePointer<Float>,
    _ aRow: Int, _ aCol: Int, _ b: UnsafePointer<Float>, _ ldb: Int, _ m: Int, _ k: Int, _ accumulate: Bool
) {
    var row = 0
    @inline(always)
    func tile(rows: Int) {
        chainTile(
            rows: rows, vectors: vectors, lanes: lanes, c + row &* ldc, ldc, a + row &* aRow, aRow, aCol, b,
            ldb, k, accumulate)
        row &+= rows
    }
    while row &+ tileRows <= m { tile(rows: tileRows) }
    if tileRows > 4 && row &+ 4 <= m { tile(rows: 4) }
    if tileRows > 2 && row &+ 2 <= m { tile(rows: 2) }
    if row < m { tile(rows: 1) }
}

/// So many rows of `b` at a time that a panel of them stays in the first-level cache.
private let panelDepth = 256

/// The last columns of `c`, fewer than a vector: the rows of `b`, at most `panelDepth`, are first copied to full
/// vectors.
private func chainLastPanel(
    lanes: Int, _ c: UnsafeMutablePointer<Float>, _ ldc: Int, _ a: UnsafePointer<Float>, _ aRow: Int,
    _ aCol: Int, _ b: UnsafePointer<Float>, _ ldb: Int, _ m: Int, _ k: Int, _ accumulate: Bool
) {
    let zeros = zeroRegisters()
    var panel: InlineArray<16, Registers> = [
        zeros, zeros, zeros, zeros, zeros, zeros, zeros, zeros,
        zeros, zeros, zeros, zeros, zeros, zeros, zeros, zeros,
    ]
    withUnsafeMutableBytes(of: &panel) {
        let panel = $0.baseAddress.unsafelyUnwrapped.assumingMemoryBound(to: Float.self)
        for p in 0..<k {
            let row = load(b + p &* ldb, Lanes(first: 0, end: lanes))
            store(row, panel, Lanes(first: 16 &* p))
        }
        chainPanel(vectors: 1, lanes: lanes, c, ldc, a, aRow, aCol, panel, 16, m, k, accumulate)
    }
}

/// `c[i][j] (+)=` the sum over p of `a[i * aRow + p * aCol] * b[p][j]`: one chain of multiply-adds per element in
/// order of p, `c` loaded first. Neither the tile nor the cut of `k` shows in a bit of the result.
func chainGEMM(
    _ c: UnsafeMutablePointer<Float>, _ ldc: Int64, _ a: UnsafePointer<Float>, _ aRow: Int64, _ aCol: Int64,
    _ b: UnsafePointer<Float>, _ ldb: Int64, _ m: Int64, _ n: Int64, _ k: Int64, _ accumulate: Int32
) {
    let (ldc, aRow, aCol, ldb) = (Int(ldc), Int(aRow), Int(aCol), Int(ldb))
    let (m, n, k) = (Int(m), Int(n), Int(k))
    var first = 0
    repeat {
        let depth = min(panelDepth, k &- first)
        let (a, b) = (a + first &* aCol, b + first &* ldb)
        let accumulate = accumulate != 0 || first > 0
        var column = 0
        while column &+ 16 &* tileVectors <= n {
            chainPanel(
                vectors: tileVectors, lanes: 16, c + column, ldc, a, aRow, aCol, b + column, ldb, m, depth,
                accumulate)
            column &+= 16 &* tileVectors
        }
        if tileVectors > 1 && column &+ 16 <= n {
            chainPanel(
                vectors: 1, lanes: 16, c + column, ldc, a, aRow, aCol, b + column, ldb, m, depth, accumulate)
            column &+= 16
        }
        if column < n {
            chainLastPanel(
                lanes: n &- column, c + column, ldc, a, aRow, aCol, b + column, ldb, m, depth, accumulate)
        }
        first &+= panelDepth
    } while first < k
}
