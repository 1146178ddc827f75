import CShims

/// AdamW with moments of 8 bits: blocks of 256 elements, each times its largest magnitude (Dettmers et al., arXiv
/// 2110.02861), in the codes of G.711's companding (µ-law), which are small floats with a linear part next to 0.
///
/// Of the first moment these have a sign, 3 bits of exponent and 4 of mantissa, 1 part in 3,952 of the largest apart next to
/// 0; of the root of the second, 3 and 5, 1 part in 8,096 apart, and never 0.
public struct AdamW8bit: Sendable {
    public var learningRate: Double
    public var beta1: Double
    public var beta2: Double
    public var eps: Double
    public var weightDecay: Double
    /// Parameters with fewer elements keep moments in float32.
    public var minimumSize: Int

    /// Elements that share a scale.
    static let blockSize = 256

    public init(
        learningRate: Double = 1e-3, beta1: Double = 0.9, beta2: Double = 0.999, eps: Double = 1e-8,
        weightDecay: Double = 1e-2, minimumSize: Int = 4096
    ) {
        self.learningRate = learningRate
        self.beta1 = beta1
        self.beta2 = beta2
        self.eps = eps
        self.weightDecay = weightDecay
        self.minimumSize = minimumSize
    }
}

extension AdamW8bit: UpdateRule {
    public static var name: StaticString { "adamw8bit" }
    public var followsMomentSteps: Bool { true }

    private var adamW: AdamW {
        AdamW(learningRate: learningRate, beta1: beta1, beta2: beta2, eps: eps, weightDecay: weightDecay)
    }

    public func slots(ofParameter index: Int, shape: [Int]) -> [Slot] {
        let count = shape.reduce(1, *)
        guard count >= minimumSize else { return adamW.slots(ofParameter: index, shape: shape) }
        let blocks = (count + AdamW8bit.blockSize - 1) / AdamW8bit.blockSize
        return [
            Slot("exp_avg_code", .uint8, shape: shape), Slot("exp_avg_scale", shape: [blocks]),
            Slot("exp_avg_sq_root_code", .uint8, shape: shape), Slot("exp_avg_sq_root_scale", shape: [blocks]),
        ]
    }

    public func validate() throws(GAError) {
        try requireAdam(beta1, beta2, eps: eps, weightDecay: weightDecay, isDecoupled: true)
        guard minimumSize >= 0 else {
            throw GAError(.invalidArgument, "adamw8bit: min_8bit_size is \(minimumSize): it must be at least 0")
        }
    }

    public func apply(_ update: Update) throws(GAError) {
        try adamW.apply(update.of { $0.count < minimumSize })
        let options = adamW.options(update)
        let quantized = update.of { $0.count >= minimumSize }
        try quantized.forEachPiece { index, range in
            let (parameter, start) = (quantized.parameters[index], range.lowerBound)
            let block = start / AdamW8bit.blockSize
            withUnsafePointer(to: options) {
                Runtime.kernels.adamw8bit(
                    parameter.values + start, parameter.gradient + start,
                    parameter.slots[0].assumingMemoryBound(to: UInt8.self) + start, parameter.floats(1) + block,
                    parameter.slots[2].assumingMemoryBound(to: UInt8.self) + start, parameter.floats(3) + block, $0,
                    Int64(range.count))
            }
        }
    }
}
