import CShims

/// Muon (Jordan et al., kellerjordan.github.io/posts/muon), as torch.optim.Muon: the momentum of a matrix, made nearly
/// orthogonal, is the direction. A parameter that has not two axes is updated by AdamW.
///
/// All of it is computed in float32, where PyTorch makes the momentum orthogonal in bfloat16.
public struct Muon: Sendable {
    /// What the learning rate of a matrix [rows, columns] is multiplied by.
    public enum Adjustment: Int32, CaseIterable, Sendable {
        /// The root of max(1, rows / columns).
        case original = 0
        /// 0.2 times the root of max(rows, columns): steps of the size of AdamW's (Liu et al., arXiv 2502.16982).
        case matchRMSAdamW = 1
        /// The root of rows / columns.
        case spectralUnclamped = 2
    }

    public var learningRate: Double
    /// Decoupled, as in AdamW.
    public var weightDecay: Double
    public var momentum: Double
    public var nesterov: Bool
    /// Of an iteration, which makes `a x + b x^3 + c x^5` of a singular value.
    public var coefficients: (a: Double, b: Double, c: Double)
    /// The least length that a momentum is divided by.
    public var eps: Double
    public var iterations: Int
    public var adjustment: Adjustment

    /// AdamW's learning rate is this times ``learningRate``.
    public var adamWLearningRateRatio: Double
    public var adamWBeta1: Double
    public var adamWBeta2: Double
    public var adamWEps: Double
    public var adamWWeightDecay: Double
    /// Places of matrices that AdamW updates too, such as an embedding and an output head.
    public var adamWParameters: Set<Int>

    public init(
        learningRate: Double = 1e-3, weightDecay: Double = 0.1, momentum: Double = 0.95, nesterov: Bool = true,
        coefficients: (a: Double, b: Double, c: Double) = (3.4445, -4.775, 2.0315), eps: Double = 1e-7,
        iterations: Int = 5, adjustment: Adjustment = .original, adamWLearningRateRatio: Double = 1,
        adamWBeta1: Double = 0.9, adamWBeta2: Double = 0.999, adamWEps: Double = 1e-8, adamWWeightDecay: Double = 1e-2,
        adamWParameters: Set<Int> = []
    ) {
        self.learningRate = learningRate
        self.weightDecay = weightDecay
        self.momentum = momentum
        self.nesterov = nesterov
        self.coefficients = coefficients
        self.eps = eps
        self.iterations = iterations
        self.adjustment = adjustment
        self.adamWLearningRateRatio = adamWLearningRateRatio
        self.adamWBeta1 = adamWBeta1
        self.adamWBeta2 = adamWBeta2
        self.adamWEps = adamWEps
        self.adamWWeightDecay = adamWWeightDecay
        self.adamWParameters = adamWParameters
    }
}

extension Muon: UpdateRule {
    public static var name: StaticString { "muon" }
    /// Of what AdamW updates.
    public var followsMomentSteps: Bool { true }

    private var adamW: AdamW {
        AdamW(
            learningRate: learningRate * adamWLearningRateRatio, beta1: adamWBeta1, beta2: adamWBeta2, eps: adamWEps,
            weightDecay: adamWWeightDecay)
    }

    private func isMatrix(_ index: Int, _ shape: [Int]) -> Bool {
        shape.count == 2 && !adamWParameters.contains(index)
    }

    public mutating func setWeightDecay(_ value: Double) {
        weightDecay = value
        adamWWeightDecay = value
    }

    public func slots(ofParameter index: Int, shape: [Int]) -> [Slot] {
        isMatrix(index, shape)
            ? [Slot("momentum_buffer", shape: shape)] : adamW.slots(ofParameter: index, shape: shape)
    }

    public func workspace(shapes: [[Int]]) -> Int {
        let threads = Runtime.numThreads
        let sizes = shapes.enumerated().map { index, shape in
            isMatrix(index, shape) ? NewtonSchulz.size(rows: shape[0], columns: shape[1], threads: threads) : 0
        }
        return sizes.max() ?? 0
    }

    public func validate() throws(GAError) {
        try requireLearningRate()
        try requireDecoupledDecay(weightDecay)
        try require(momentum, "momentum", in: 0...1)
        let anyFinite = -Double.infinity...Double.infinity
        try require(coefficients.a, "ns_coefficient_a", in: anyFinite)
        try require(coefficients.b, "ns_coefficient_b", in: anyFinite)
        try require(coefficients.c, "ns_coefficient_c", in: anyFinite)
        // Its inverse must be finite.
        try require(eps, "eps", in: 0x1p-126...Double.infinity)
        guard (0..<100).contains(iterations) else {
            throw GAError(.invalidArgument, "muon: ns_steps is \(iterations): it must be in 0 ... 99")
        }
        try require(adamWLearningRateRatio, "adamw_learning_rate_ratio", in: 0...Double.infinity)
        try require(adamWBeta1, "adamw_beta1", in: 0...1.0.nextDown)
        try require(adamWBeta2, "adamw_beta2", in: 0...1.0.nextDown)
        try requireEps(adamWEps, "adamw_eps")
        try require(adamWWeightDecay, "adamw_weight_decay", in: 0...Double.infinity)
        try adamW.validate()
    }

    public func apply(_ update: Update) throws(GAError) {
        try adamW.apply(update.of { !isMatrix($0.index, $0.shape) })
        for matrix in update.parameters where isMatrix(matrix.index, matrix.shape) && matrix.count > 0 {
            try apply(update, to: matrix)
        }
    }

    private func apply(_ update: Update, to matrix: Update.Parameter) throws(GAError) {
        let (rows, columns) = (matrix.shape[0], matrix.shape[1])
        let iteration = NewtonSchulz(rows: rows, columns: columns, in: update.workspace)
        let alone = update.of { $0.index == matrix.index }
        let options = shims_muon(
            gradient_scale: update.gradientScale, weight: Float(1 - momentum), momentum: Float(momentum),
            nesterov: nesterov ? 1 : 0)
        let square = try alone.sums { _, range in
            let start = range.lowerBound
            return withUnsafePointer(to: options) {
                let square = Runtime.kernels.muon_momentum(
                    iteration.input + start, matrix.gradient + start, matrix.floats(0) + start, $0, Int64(range.count))
                return [square, 0]
            }
        }
        let direction = try iteration.orthogonalize(
            scale: Float(1 / max(square[0][0].squareRoot(), eps)), coefficients, iterations: iterations)
        let step = Float(learningRate * adjusted(Double(rows), Double(columns)))
        let decay = Float(decoupledDecay(weightDecay))
        try alone.forEachPiece { _, range in
            let start = range.lowerBound
            Runtime.kernels.muon_step(matrix.values + start, direction + start, decay, step, Int64(range.count))
        }
    }

    private func adjusted(_ rows: Double, _ columns: Double) -> Double {
        switch adjustment {
        case .original: max(1, rows / columns).squareRoot()
        case .matchRMSAdamW: 0.2 * max(rows, columns).squareRoot()
        case .spectralUnclamped: (rows / columns).squareRoot()
        }
    }
}
