import CShims

/// The iteration that brings the singular values of a matrix near to 1.
struct NewtonSchulz {
    private let rows: Int
    private let columns: Int
    private let memory: UnsafeMutablePointer<Float>
    /// What the products pack their factors in: a part for each that runs at the time.
    private let scratch: UnsafeMutableBufferPointer<Float>

    /// In memory of at least the size of ``size(rows:columns:threads:)``.
    init(rows: Int, columns: Int, in memory: UnsafeMutableBufferPointer<Float>) {
        self.rows = rows
        self.columns = columns
        self.memory = memory.baseAddress!
        scratch = UnsafeMutableBufferPointer(rebasing: memory[NewtonSchulz.matrices(rows, columns)...])
    }

    /// The numbers of memory that so many threads can work in.
    static func size(rows: Int, columns: Int, threads: Int) -> Int {
        matrices(rows, columns) + threads * scratchPart(rows, columns)
    }

    /// A matrix, its next, and three with its shorter side.
    private static func matrices(_ rows: Int, _ columns: Int) -> Int {
        let side = min(rows, columns)
        return 2 * rows * columns + 3 * side * side
    }

    /// For a tile of any of the products.
    private static func scratchPart(_ rows: Int, _ columns: Int) -> Int {
        let (tall, side) = (max(rows, columns), min(rows, columns))
        let tile = Tiles.largest
        let gram = MatrixProduct(m: min(side, tile), n: min(side, tile), k: tall)
        let step = MatrixProduct(m: min(tall, tile), n: min(tall, tile), k: side)
        // A cache line more, so that no two threads share one.
        return max(gram.scratch(), step.scratch()) + 16
    }

    /// Where the matrix is put, contiguous in row-major order.
    var input: UnsafeMutablePointer<Float> { memory }

    /// Multiplies the matrix [rows, columns] at ``input`` by `scale` and iterates; returns the address of the result.
    ///
    /// X becomes `a X + X (b G + c G^2)`, where G is the transpose of X times X: the odd polynomial on its singular values. A
    /// wide matrix is multiplied from the left instead, with G that is X times its transpose.
    func orthogonalize(
        scale: Float, _ coefficients: (a: Double, b: Double, c: Double), iterations: Int
    ) throws(GAError) -> UnsafeMutablePointer<Float> {
        let isWide = rows < columns
        let (tall, side) = (max(rows, columns), min(rows, columns))
        var (x, next) = (memory, memory + rows * columns)
        let g = next + rows * columns
        let (square, p) = (g + side * side, g + 2 * side * side)
        let (gMatrix, pMatrix) = (Matrix(g, row: side), Matrix(p, row: side))
        try multiply(x, x, scale, tall * side)
        for _ in 0..<iterations {
            let current = Matrix(x, row: columns)
            let (first, second) = isWide ? (current, current.transposed) : (current.transposed, current)
            try run(MatrixProduct(m: side, n: side, k: tall), gMatrix, first, second)
            try multiply(square, g, Float(coefficients.c), side * side)
            try multiply(p, g, Float(coefficients.b), side * side)
            try run(
                MatrixProduct(m: side, n: side, k: side, accumulate: 1), pMatrix, Matrix(square, row: side), gMatrix)
            try multiply(next, x, Float(coefficients.a), tall * side)
            let (left, right) = isWide ? (pMatrix, current) : (current, pMatrix)
            try run(
                MatrixProduct(m: rows, n: columns, k: side, accumulate: 1), Matrix(next, row: columns), left, right)
            swap(&x, &next)
        }
        return x
    }

    /// The tiles of a result. Small, as their scratch memory is there all the time.
    private struct Tiles {
        static let largest = 192
        let rows, columns: Blocks

        init(_ product: MatrixProduct) {
            rows = Blocks(product.m, largest: Tiles.largest)
            columns = Blocks(product.n, largest: Tiles.largest)
        }

        var count: Int { rows.count * columns.count }
    }

    /// Runs a product on as many threads as there is memory for: one that asked for more could fail half-way through an
    /// update.
    private func run(_ product: MatrixProduct, _ c: Matrix, _ a: Matrix, _ b: Matrix) throws(GAError) {
        let tiles = Tiles(product)
        let part = NewtonSchulz.scratchPart(rows, columns)
        let lanes = max(1, min(tiles.count, scratch.count / part))
        try Runtime.parallel(tiles: lanes) { lane in
            for tile in stride(from: lane, to: tiles.count, by: lanes) {
                let (i, j) = (tile % tiles.rows.count, tile / tiles.rows.count)
                let (row, column) = (tiles.rows.start(i), tiles.columns.start(j))
                MatrixProduct(
                    m: tiles.rows.count(i), n: tiles.columns.count(j), k: product.k, accumulate: product.accumulate
                ).runAlone(c.at(row, column), a.at(row, 0), b.at(0, column), scratch.baseAddress! + lane * part)
            }
        }
    }

    private func multiply(
        _ out: UnsafeMutablePointer<Float>, _ x: UnsafeMutablePointer<Float>, _ factor: Float, _ count: Int
    ) throws(GAError) {
        try Runtime.parallel(count: count, grain: 32768) { start, size in
            Runtime.kernels.add_scaled(out + start, x + start, SHIMS_F32, factor, Int64(size), 0)
        }
    }
}
