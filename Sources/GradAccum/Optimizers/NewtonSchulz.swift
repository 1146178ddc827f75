import CShims

/// The iteration that brings the singular values of a matrix near to 1, with memory for the largest of some matrices.
struct NewtonSchulz {
    /// Where a matrix is put, contiguous in row-major order.
    var input: UnsafeMutablePointer<Float> { matrices.0.floats }

    private let matrices: (Tensor, Tensor)
    private let gram: Tensor
    private let squared: Tensor
    private let polynomial: Tensor

    /// Errors: `outOfMemory`.
    init(_ shapes: [(rows: Int, columns: Int)]) throws(GAError) {
        let count = shapes.map { $0.rows * $0.columns }.max() ?? 0
        let side = shapes.map { min($0.rows, $0.columns) }.max() ?? 0
        matrices = (
            try Tensor(uninitialized: [count], for: "muon"), try Tensor(uninitialized: [count], for: "muon")
        )
        gram = try Tensor(uninitialized: [side, side], for: "muon")
        squared = try Tensor(uninitialized: [side, side], for: "muon")
        polynomial = try Tensor(uninitialized: [side, side], for: "muon")
    }

    /// Multiplies the matrix [rows, columns] at ``input`` by `scale` and iterates; returns the address of the result.
    ///
    /// With X of at least as many rows as columns, X becomes `a X + X (b G + c G^2)`, where G is the transpose of X times X:
    /// the odd polynomial on its singular values. A wide matrix is transposed before and after.
    func orthogonalize(
        _ rows: Int, _ columns: Int, scale: Float, _ coefficients: (a: Double, b: Double, c: Double), iterations: Int
    ) throws(GAError) -> UnsafeMutablePointer<Float> {
        let isWide = rows < columns
        let (tall, side) = (max(rows, columns), min(rows, columns))
        var (x, next) = (matrices.0.floats, matrices.1.floats)
        if isWide {
            try transpose(next, x, rows, columns)
            swap(&x, &next)
        }
        try multiply(x, x, scale, tall * side)
        let (g, square, p) = (gram.floats, squared.floats, polynomial.floats)
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

    /// c [m, n] (+)= a [m, k] b [k, n], without a need for memory that could fail half-way through an update.
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
