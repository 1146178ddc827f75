import CShims

/// The iteration that brings the singular values of a matrix near to 1.
struct NewtonSchulz {
    private let rows: Int
    private let columns: Int
    private let memory: UnsafeMutablePointer<Float>

    /// In `memory` of the size of ``size(rows:columns:)``.
    init(rows: Int, columns: Int, in memory: UnsafeMutablePointer<Float>) {
        self.rows = rows
        self.columns = columns
        self.memory = memory
    }

    /// The numbers of memory for a matrix, its next, and three with its shorter side.
    static func size(rows: Int, columns: Int) -> Int {
        let side = min(rows, columns)
        return 2 * rows * columns + 3 * side * side
    }

    /// Where the matrix is put, contiguous in row-major order.
    var input: UnsafeMutablePointer<Float> { memory }

    /// Multiplies the matrix [rows, columns] at ``input`` by `scale` and iterates; returns the address of the result.
    ///
    /// With X of at least as many rows as columns, X becomes `a X + X (b G + c G^2)`, where G is the transpose of X times X:
    /// the odd polynomial on its singular values. A wide matrix is transposed before and after.
    func orthogonalize(
        scale: Float, _ coefficients: (a: Double, b: Double, c: Double), iterations: Int
    ) throws(GAError) -> UnsafeMutablePointer<Float> {
        let isWide = rows < columns
        let (tall, side) = (max(rows, columns), min(rows, columns))
        var (x, next) = (memory, memory + rows * columns)
        let g = next + rows * columns
        let (square, p) = (g + side * side, g + 2 * side * side)
        if isWide {
            try transpose(next, x, rows, columns)
            swap(&x, &next)
        }
        try multiply(x, x, scale, tall * side)
        for _ in 0..<iterations {
            try add(g, Matrix(x, row: side).transposed, x, side, side, tall, accumulate: 0)
            try multiply(square, g, Float(coefficients.c), side * side)
            try multiply(p, g, Float(coefficients.b), side * side)
            try add(p, Matrix(square, row: side), g, side, side, side, accumulate: 1)
            try multiply(next, x, Float(coefficients.a), tall * side)
            try add(next, Matrix(x, row: side), p, tall, side, side, accumulate: 1)
            swap(&x, &next)
        }
        if isWide {
            try transpose(next, x, columns, rows)
            swap(&x, &next)
        }
        return x
    }

    /// c [m, n] (+)= a [m, k] b [k, n]. Chains need no memory, which could fail half-way through an update.
    private func add(
        _ c: UnsafeMutablePointer<Float>, _ a: Matrix, _ b: UnsafeMutablePointer<Float>, _ m: Int, _ n: Int, _ k: Int,
        accumulate: Int32
    ) throws(GAError) {
        try MatrixProduct.chains(
            Matrix(c, row: n), a, Matrix(b, row: n), m: m, n: n, k: k, accumulate: accumulate)
    }

    private func multiply(
        _ out: UnsafeMutablePointer<Float>, _ x: UnsafeMutablePointer<Float>, _ factor: Float, _ count: Int
    ) throws(GAError) {
        try Runtime.parallel(count: count, grain: 32768) { start, size in
            Runtime.kernels.add_scaled(out + start, x + start, SHIMS_F32, factor, Int64(size), 0)
        }
    }

    /// out [columns, rows] is the transpose of x [rows, columns].
    private func transpose(
        _ out: UnsafeMutablePointer<Float>, _ x: UnsafeMutablePointer<Float>, _ rows: Int, _ columns: Int
    ) throws(GAError) {
        try Runtime.parallel(count: rows, grain: 64) { start, size in
            Runtime.kernels.transpose(
                out + start, Int64(rows), x + start * columns, Int64(columns), Int64(size), Int64(columns))
        }
    }
}
