import CShims

/// A matrix in memory: element (i, j) is at `address[i * row + j * column]`, and one of the two steps is 1.
struct Matrix {
    let address: UnsafeMutablePointer<Float>
    let row: Int
    let column: Int

    /// Contiguous along its rows.
    init(_ address: UnsafeMutablePointer<Float>, row: Int) {
        self.init(address, row: row, column: 1)
    }

    init(_ address: UnsafeMutablePointer<Float>, row: Int, column: Int) {
        self.address = address
        self.row = row
        self.column = column
    }

    var transposed: Matrix { Matrix(address, row: column, column: row) }

    func at(_ i: Int, _ j: Int) -> Matrix { Matrix(address + (i * row + j * column), row: row, column: column) }
}

/// Cuts an axis into nearly equal blocks of at most `largest`, at multiples of 16 where it is longer than that.
///
/// The cut depends on the length alone, because a product's bits may depend on where it is cut.
struct Blocks {
    let count: Int
    private let length: Int
    private let size: Int

    init(_ length: Int, largest: Int) {
        self.length = length
        guard length > largest else {
            (count, size) = (1, max(length, 1))
            return
        }
        let wanted = (length + largest - 1) / largest
        let even = (length + wanted - 1) / wanted
        size = (even + 15) & ~15
        count = (length + size - 1) / size
    }

    func start(_ block: Int) -> Int { block * size }
    func count(_ block: Int) -> Int { min(size, length - block * size) }
}

enum MatrixProduct {
    /// Rows and columns of the output that one call computes: large enough for full speed, small enough to share.
    static let rowsPerTile = 256
    static let columnsPerTile = 256
    /// Samples with fewer rows than this are computed by chains, many samples together.
    static let fewRows = 16

    /// Runs `body(matrix, row, rowCount, column, columnCount)` for the tiles of `count` output matrices.
    static func forEachTile(
        of count: Int, rows: Int, columns: Int, _ body: (Int, Int, Int, Int, Int) throws(GAError) -> Void
    ) throws(GAError) {
        let rowBlocks = Blocks(rows, largest: rowsPerTile)
        let columnBlocks = Blocks(columns, largest: columnsPerTile)
        let perMatrix = rowBlocks.count * columnBlocks.count
        try Runtime.parallel(tiles: count * perMatrix) { tile throws(GAError) in
            let row = tile % perMatrix / columnBlocks.count
            let column = tile % columnBlocks.count
            try body(
                tile / perMatrix, rowBlocks.start(row), rowBlocks.count(row), columnBlocks.start(column),
                columnBlocks.count(column))
        }
    }

    /// c [m, n] (+)= a [m, k] b [k, n] (+ bias) by oneDNN, on the calling thread; c is contiguous along its rows.
    static func gemm(
        _ c: Matrix, _ a: Matrix, _ b: Matrix, m: Int, n: Int, k: Int, accumulate: Int32,
        bias: UnsafePointer<Float>? = nil
    ) throws(GAError) {
        guard m > 0 && n > 0 else { return }
        guard k > 0 else {
            for i in 0..<m { emptySum(c.address + i * c.row, n, accumulate, bias) }
            return
        }
        let aIsTransposed = a.column != 1
        let bIsTransposed = b.column != 1
        var shape = shims_gemm_shape(
            m: Int64(m), n: Int64(n), k: Int64(k),
            lda: Int64(leading(aIsTransposed ? a.column : a.row, aIsTransposed ? m : k)),
            ldb: Int64(leading(bIsTransposed ? b.column : b.row, bIsTransposed ? k : n)),
            ldc: Int64(leading(c.row, n)),
            transpose_a: aIsTransposed ? 1 : 0, transpose_b: bIsTransposed ? 1 : 0,
            accumulate: accumulate == 0 ? 0 : 1, has_bias: bias == nil ? 0 : 1, reserved: 0)
        switch shims_gemm(&shape, a.address, b.address, c.address, bias) {
        case SHIMS_GEMM_OK: return
        case SHIMS_GEMM_OUT_OF_MEMORY:
            throw GAError(.outOfMemory, "a matrix product [\(m), \(k)] x [\(k), \(n)] has no memory to work in")
        default: throw GAError(.internal, "oneDNN refused a matrix product [\(m), \(k)] x [\(k), \(n)]")
        }
    }

    /// The step of a matrix with one row or column means nothing and may be anything: take the least legal one.
    private static func leading(_ step: Int, _ length: Int) -> Int { max(step, length, 1) }

    private static func emptySum(
        _ c: UnsafeMutablePointer<Float>, _ n: Int, _ accumulate: Int32, _ bias: UnsafePointer<Float>?
    ) {
        if let bias {
            Runtime.kernels.add_scaled(c, bias, SHIMS_F32, 1, Int64(n), accumulate)
        } else if accumulate == 0 {
            Runtime.kernels.fill(c, 0, Int64(n))
        }
    }

    /// c [m, n] (+)= a [m, k] b [k, n] by chains over k, each element alone: rows may be single samples.
    ///
    /// Runs on all threads. `b` is transposed into a temporary first where it is not contiguous along its rows.
    static func chains(
        _ c: Matrix, _ a: Matrix, _ b: Matrix, m: Int, n: Int, k: Int, accumulate: Int32
    ) throws(GAError) {
        let packed = b.column == 1 ? nil : try Storage(floatCount: k * n)
        if let packed {
            let columns = Blocks(n, largest: 64)
            try Runtime.parallel(tiles: columns.count) { block in
                let start = columns.start(block)
                let source = b.at(0, start)
                Runtime.kernels.transpose(
                    packed.floats + start, Int64(n), source.address, Int64(b.column), Int64(columns.count(block)),
                    Int64(k))
            }
        }
        let rowMajor = packed.map { Matrix($0.floats, row: n) } ?? b
        let rows = Blocks(m, largest: 64)
        let columns = Blocks(n, largest: 64)
        try Runtime.parallel(tiles: rows.count * columns.count) { tile in
            let i = rows.start(tile / columns.count)
            let j = columns.start(tile % columns.count)
            let (from, to, into) = (a.at(i, 0), rowMajor.at(0, j), c.at(i, j))
            Runtime.kernels.chain_gemm(
                into.address, Int64(c.row), from.address, Int64(a.row), Int64(a.column), to.address,
                Int64(rowMajor.row), Int64(rows.count(tile / columns.count)),
                Int64(columns.count(tile % columns.count)), Int64(k), accumulate)
        }
    }
}
