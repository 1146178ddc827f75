import CShims

extension Tensor {
    /// This tensor [..., in] times the transpose of `weight` [out, in], plus `bias` [out]: [..., out].
    public func linear(_ weight: Tensor, _ bias: Tensor? = nil) throws(GAError) -> Tensor {
        let layer = try LinearLayer(self, weight, "linear")
        try bias?.require(.float32, "linear", "bias")
        try bias?.require(shape: [layer.n], "linear", "bias")
        let out = try Tensor(uninitialized: try layout.packed(lastSize: layer.n, "linear"), layer.compute)
        let x = try packedData()
        let w = try weight.packedData()
        let b = try bias?.packedData()
        try layer.forward(out, x, w, b)
        let derivative = LinearDerivative(layer, self, x, weight, w)
        let hasBias = bias != nil
        func backward(_ dy: Tensor, _ gradients: Gradients) throws(GAError) {
            try gradients.underflow?.count(dy, layer.compute)
            // Rounded once for both products: while the gradient of the bias reads it, where that is work for all threads.
            let factor = layer.compute == .float32 ? dy : try Tensor(uninitialized: dy.layout, layer.compute)
            let addsBias = hasBias && gradients.needed(2)
            let roundsForBias = factor !== dy && addsBias && layer.n >= 64 * Runtime.numThreads
            if factor !== dy && !roundsForBias {
                try elementwise(dy.elementCount) { start, count in factor.storeFloats(dy.floats + start, start, count) }
            }
            if addsBias {
                try gradients.add(to: 2, samples: layer.samples) { (db, accumulate, samples) throws(GAError) in
                    try sumRows(
                        db, dy, layer.rows(of: samples), columns: layer.n, accumulate,
                        rounding: roundsForBias ? factor : nil)
                }
            }
            try derivative.add(factor, gradients)
        }
        let inputs = bias.map { [self, weight, $0] } ?? [self, weight]
        return out.recorded("linear", from: inputs, reading: derivative.operands, backward)
    }
}

/// What the gradients of a linear layer's input and weight are made from: of each the other, if it needs one.
struct LinearDerivative {
    private let layer: LinearLayer
    private let x: SavedOperand?
    private let w: Tensor?

    /// `x` and `w` are the contiguous elements of the two.
    init(_ layer: LinearLayer, _ input: Tensor, _ x: Tensor, _ weight: Tensor, _ w: Tensor) {
        self.layer = layer
        self.x = weight.requiresGrad ? SavedOperand(x, of: input) : nil
        self.w = input.requiresGrad ? w : nil
    }

    var operands: [Tensor] { (x?.operands ?? []) + (w.map { [$0] } ?? []) }

    /// Adds the gradients of inputs 0 and 1, the input and the weight, for this one of the output.
    func add(_ dy: Tensor, _ gradients: Gradients) throws(GAError) {
        // The weight first: an input that is made again for it is gone before there is an input's gradient.
        if let x {
            if let sum = try gradients.bf16SumOfWhole(1) {
                try layer.addWeightGradients(to: sum, dy, try x.elements())
            } else {
                let x = try x.elements()
                try gradients.add(to: 1, samples: layer.samples) { (dw, accumulate, samples) throws(GAError) in
                    try layer.weightGradient(dw, dy, x, layer.rows(of: samples), accumulate)
                }
            }
        }
        if let w {
            try gradients.add(to: 0) { (dx, accumulate) throws(GAError) in
                try layer.inputGradient(dx, dy, w, accumulate)
            }
        }
    }
}

/// The products of a linear layer: y [rows, n] = x [rows, k] w^T, with w [n, k].
struct LinearLayer {
    /// Of all samples together.
    let rows: Int
    let n: Int
    let k: Int
    /// Elements between the rows of y and of its gradient.
    let rowOfY: Int
    /// The type of products and of the output.
    let compute = Compute.dtype
    private let rowsOfSample: Int

    var samples: Int { rowsOfSample == 0 ? 0 : rows / rowsOfSample }

    func rows(of samples: Range<Int>) -> Range<Int> {
        samples.lowerBound * rowsOfSample..<samples.upperBound * rowsOfSample
    }

    /// `padsLongRows`: rows of y that are long begin at lines of memory, which those of a vocabulary seldom do.
    ///
    /// Errors: `dtype` and `shape` of x [..., in] and weight [out, in].
    init(
        _ x: Tensor, _ weight: Tensor, _ operation: StaticString, padsLongRows: Bool = false
    ) throws(GAError) {
        try x.requireFloat(operation, "x")
        try weight.requireFloat(operation, "weight")
        try x.require(rank: 1, operation, "x")
        k = x.shape[x.rank - 1]
        guard weight.rank == 2 && weight.shape[1] == k else {
            throw GAError(
                .shape, "\(operation): weight has shape \(weight.shape), and [out, \(k)] is needed for x \(x.shape)")
        }
        n = weight.shape[0]
        rowOfY = padsLongRows && n >= 16384 ? (n + 31) & ~31 : n
        rows = k == 0 ? x.shape.dropLast().reduce(1, *) : x.elementCount / k
        rowsOfSample = x.rank < 3 ? 1 : x.shape[1..<(x.rank - 1)].reduce(1, *)
    }

    func forward(_ y: Tensor, _ x: Tensor, _ w: Tensor, _ bias: Tensor?) throws(GAError) {
        try MatrixProduct(m: rows, n: n, k: k, arithmetic: compute, bias: bias.map { UnsafePointer($0.floats) })
            .run(Matrix(y, row: rowOfY), Matrix(x, row: k), Matrix(w, row: k).transposed)
    }

    func inputGradient(
        _ dx: UnsafeMutablePointer<Float>, _ dy: Tensor, _ w: Tensor, _ accumulate: Int32
    ) throws(GAError) {
        try MatrixProduct(m: rows, n: k, k: n, arithmetic: compute, accumulate: accumulate)
            .run(Matrix(dx, row: k), Matrix(dy, row: rowOfY), Matrix(w, row: k))
    }

    /// One chain over these rows of samples.
    func weightGradient(
        _ dw: UnsafeMutablePointer<Float>, _ dy: Tensor, _ x: Tensor, _ rows: Range<Int>, _ accumulate: Int32
    ) throws(GAError) {
        try MatrixProduct(m: n, n: k, k: rows.count, arithmetic: weightArithmetic, accumulate: accumulate)
            .run(
                Matrix(dw, row: k), Matrix(dy, row: rowOfY).at(rows.lowerBound, 0).transposed,
                Matrix(x, row: k).at(rows.lowerBound, 0))
    }

    /// One chain over the rows of each sample, which is added as a whole.
    func addWeightGradients(to sum: BF16Sum, _ dy: Tensor, _ x: Tensor) throws(GAError) {
        try MatrixProduct(m: n, n: k, k: rowsOfSample, arithmetic: weightArithmetic)
            .add(count: samples, to: sum, Matrix(dy, row: rowOfY).transposed, Matrix(x, row: k))
    }

    /// Pairs of bfloat16 must not span two samples.
    private var weightArithmetic: DType { rowsOfSample % 2 == 0 || compute != .bfloat16 ? compute : .float32 }
}

/// out [columns] (+)= these rows of x [..., columns] one after another: one chain per column. They are rounded into `rounded`,
/// if there is one, in the same pass.
func sumRows(
    _ out: UnsafeMutablePointer<Float>, _ x: Tensor, _ rows: Range<Int>, columns: Int, _ accumulate: Int32,
    rounding rounded: Tensor? = nil
) throws(GAError) {
    let first = rows.lowerBound * columns
    try forEachColumns(columns) { column, count in
        let (start, out) = (first + column, out + column)
        if let rounded {
            Runtime.kernels.sum_and_round_rows(
                out, rounded.address.assumingMemoryBound(to: UInt16.self) + start, rounded.dtype.format,
                x.floats + start, Int64(rows.count), Int64(count), Int64(columns), accumulate)
        } else {
            Runtime.kernels.sum_rows(
                out, x.floats + start, Int64(rows.count), Int64(count), Int64(columns), accumulate)
        }
    }
}

/// Runs `body(row)` for every row, some rows to a tile.
func elementwiseRows(_ rows: Int, _ body: (Int) -> Void) throws(GAError) {
    try Runtime.parallel(count: rows, grain: 32) { first, count in
        for row in first..<(first + count) { body(row) }
    }
}
