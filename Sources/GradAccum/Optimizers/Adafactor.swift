import CShims
import Glibc

/// Adafactor (Shazeer and Stern, arXiv 1804.04235), as torch.optim.Adafactor: the second moment of a matrix is known by
/// the means of its rows and of its columns alone, and steps are relative to the size of the parameter.
///
/// A parameter with more than two axes is so many matrices of its last two.
public struct Adafactor: Sendable {
    /// The largest relative step, and the learning rate of weight decay.
    public var learningRate: Double
    /// The second moment moves by the share `t^beta2Decay` in update t.
    public var beta2Decay: Double
    /// The least root of a second moment.
    public var eps1: Double
    /// The least size of a parameter that a step is relative to.
    public var eps2: Double
    /// The largest root of the mean square of an update.
    public var clippingThreshold: Double
    /// Decoupled, as in AdamW.
    public var weightDecay: Double

    public init(
        learningRate: Double = 1e-2, beta2Decay: Double = -0.8, eps1: Double = 0x1p-23, eps2: Double = 1e-3,
        clippingThreshold: Double = 1, weightDecay: Double = 0
    ) {
        self.learningRate = learningRate
        self.beta2Decay = beta2Decay
        self.eps1 = eps1
        self.eps2 = eps2
        self.clippingThreshold = clippingThreshold
        self.weightDecay = weightDecay
    }
}

extension Adafactor: UpdateRule {
    public static var name: StaticString { "adafactor" }

    public func slots(ofParameter index: Int, shape: [Int]) -> [Slot] {
        guard shape.count > 1 else { return [Slot("variance", shape: shape)] }
        let outer = shape.dropLast(2)
        return [
            Slot("row_var", shape: outer + [shape[shape.count - 2], 1]),
            Slot("col_var", shape: outer + [1, shape[shape.count - 1]]),
        ]
    }

    public func workspace(shapes: [[Int]]) -> Int { AdafactorWork.size(shapes: shapes) }

    public func validate() throws(GAError) {
        try requireLearningRate()
        try require(beta2Decay, "beta2_decay", in: -Double(Float.greatestFiniteMagnitude)...0)
        // Its inverse must be finite.
        try require(eps1, "eps1", in: 0x1p-126...Double.infinity)
        try require(eps2, "eps2", in: 0...Double.infinity)
        try require(clippingThreshold, "clipping_threshold", in: 1...Double.infinity)
        try requireDecoupledDecay(weightDecay)
    }

    public func apply(_ update: Update) throws(GAError) { try update.forEachPart(applyPart) }

    /// In four passes: squares by rows and columns, the size of the parameter, that of the update, and the step.
    private func applyPart(_ update: Update) throws(GAError) {
        let kernels = Runtime.kernels
        let work = AdafactorWork(update)
        try work.forEachBlock { block in
            let matrix = block.matrix
            kernels.adafactor_sums(
                matrix.rowSums + (block.columnBlock * matrix.rows + block.firstRow),
                matrix.columnSums + (block.rowBlock * matrix.columns + block.firstColumn),
                matrix.gradient + block.start, update.gradientScale, Int64(block.rows), Int64(block.columns),
                Int64(matrix.columns))
        }
        let weight = Float(pow(Double(update.number), beta2Decay))
        try work.forEachMatrix { matrix in moveVariances(of: matrix, weight: weight) }

        let sizes = try update.sums { index, range in
            let values = update.parameters[index].values + range.lowerBound
            return [kernels.sum_of_squares(values, Int64(range.count)), 0]
        }
        let squares = try work.sums { block in
            var options = options(block, update, step: 0)
            let matrix = block.matrix
            return kernels.adafactor_squares(
                matrix.gradient + block.start, matrix.rowSums + block.firstRow, matrix.columnSums + block.firstColumn,
                &options, Int64(block.rows), Int64(block.columns), Int64(matrix.columns))
        }
        let relativeStep = min(learningRate, 1 / Double(update.number).squareRoot())
        let steps = update.parameters.indices.map { index in
            let count = Double(max(update.parameters[index].count, 1))
            let size = max(eps2, (sizes[index][0] / count).squareRoot())
            let clip = max(1, (squares[index] / count).squareRoot() / clippingThreshold)
            return Float(relativeStep * size / clip)
        }
        try work.forEachBlock { block in
            var options = options(block, update, step: steps[block.parameter])
            let matrix = block.matrix
            kernels.adafactor_step(
                matrix.values + block.start, matrix.gradient + block.start, matrix.rowSums + block.firstRow,
                matrix.columnSums + block.firstColumn, &options, Int64(block.rows), Int64(block.columns),
                Int64(matrix.columns))
        }
    }

    /// Moves the second moments towards the sums of squares, which become the factors of the update.
    private func moveVariances(of matrix: AdafactorWork.Matrix, weight: Float) {
        let kernels = Runtime.kernels
        let (rows, columns) = (Int64(matrix.rows), Int64(matrix.columns))
        kernels.sum_rows(
            matrix.columnSums, matrix.columnSums + matrix.columns, Int64(matrix.rowBlocks - 1), columns, columns, 1)
        kernels.adafactor_factors(matrix.columnVariance, matrix.columnSums, weight, 1 / Float(rows), columns)
        guard let variance = matrix.rowVariance else {
            matrix.rowSums.pointee = 1
            matrix.scale.pointee = 1
            return
        }
        kernels.sum_rows(matrix.rowSums, matrix.rowSums + matrix.rows, Int64(matrix.columnBlocks - 1), rows, rows, 1)
        kernels.adafactor_factors(variance, matrix.rowSums, weight, 1 / Float(columns), rows)
        var sum = 0.0
        for row in 0..<matrix.rows { sum += Double(variance[row]) }
        matrix.scale.pointee = Float(max(sum / Double(rows), eps1).squareRoot())
    }

    private func options(_ block: AdafactorWork.Block, _ update: Update, step: Float) -> shims_adafactor {
        shims_adafactor(
            gradient_scale: update.gradientScale, row_scale: block.matrix.scale.pointee, limit: Float(1 / eps1),
            decoupled_decay: Float(decoupledDecay(weightDecay)), step_size: step)
    }
}
