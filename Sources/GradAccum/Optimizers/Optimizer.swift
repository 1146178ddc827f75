/// A set of parameters and the rule that updates them. An ``Accumulator`` decides when.
public final class Optimizer {
    public let parameters: [Tensor]
    /// Updates applied so far: the one clock of bias correction and schedules.
    public internal(set) var updateCount = 0
    private var rule: any UpdateRule
    /// Per parameter, the arrays that the rule keeps.
    private let slots: [[Tensor]]
    weak var accumulator: Accumulator?

    public convenience init(_ parameters: [Tensor], _ rule: SGD) throws(GAError) {
        try self.init(parameters, rule: rule)
    }
    public convenience init(_ parameters: [Tensor], _ rule: Adam) throws(GAError) {
        try self.init(parameters, rule: rule)
    }
    public convenience init(_ parameters: [Tensor], _ rule: AdamW) throws(GAError) {
        try self.init(parameters, rule: rule)
    }

    /// Different contiguous float32 leaves, none of another optimizer; they become parameters if they were not.
    private init(_ parameters: [Tensor], rule: some UpdateRule) throws(GAError) {
        try rule.validate()
        try Optimizer.check(parameters)
        var slots: [[Tensor]] = []
        for parameter in parameters {
            var own: [Tensor] = []
            for _ in 0..<rule.slotCount { own.append(try Tensor.zeros(parameter.shape)) }
            slots.append(own)
        }
        self.parameters = parameters
        self.rule = rule
        self.slots = slots
        for (index, parameter) in parameters.enumerated() {
            try parameter.setRequiresGrad(true)
            parameter.owner = self
            parameter.storage.owner = self
            parameter.indexInOwner = index
        }
    }

    private static func check(_ parameters: [Tensor]) throws(GAError) {
        guard !parameters.isEmpty else {
            throw GAError(.invalidArgument, "optimizer: parameters is empty: it needs at least one")
        }
        for (index, parameter) in parameters.enumerated() {
            try parameter.requireLeafable("optimizer: parameters[\(index)]")
            guard parameter.storage.owner == nil else {
                throw GAError(
                    .state, "optimizer: parameters[\(index)] belongs to another optimizer: free that one first")
            }
        }
        let byAddress = parameters.indices.filter { parameters[$0].elementCount > 0 }
            .sorted { parameters[$0].address < parameters[$1].address }
        for (a, b) in zip(byAddress, byAddress.dropFirst())
        where parameters[a].address + parameters[a].elementCount * 4 > parameters[b].address {
            throw GAError(
                .invalidArgument,
                "optimizer: parameters[\(min(a, b))] and parameters[\(max(a, b))] share memory: pass each once")
        }
    }

    /// The learning rate of the next update. Errors: `invalidArgument` unless it is finite and at least 0.
    public func setLearningRate(_ value: Double) throws(GAError) {
        var new = rule
        new.learningRate = value
        try new.validate()
        rule = new
    }

    public var learningRate: Double { rule.learningRate }

    /// Updates the parameters that have a gradient, `gradients[i]` scaled by `scale`, and counts the update.
    func apply(_ gradients: [Tensor?], scale: Float) throws(GAError) {
        let step = rule.step(update: updateCount + 1, gradientScale: scale)
        let pieces = Pieces(gradients.map { $0?.elementCount ?? 0 })
        // Made here, as tiles make no array: see ``Runtime/parallel(tiles:_:)``.
        let slots = slots.map { $0.map(\.floats) }
        try Runtime.parallel(tiles: pieces.count) { [parameters] tile in
            let (index, start, count) = pieces[tile]
            step(parameters[index].floats, gradients[index]!.floats, slots[index], start, count)
        }
        for (index, parameter) in parameters.enumerated() where gradients[index] != nil {
            parameter.storage.noteWrite()
        }
        updateCount += 1
    }
}

/// Arrays of different sizes cut into pieces for one parallel loop.
struct Pieces {
    static let grain = 32768
    private var entries: [(index: Int, start: Int, count: Int)] = []

    init(_ sizes: [Int]) {
        for (index, size) in sizes.enumerated() {
            for start in stride(from: 0, to: size, by: Pieces.grain) {
                entries.append((index, start, min(Pieces.grain, size - start)))
            }
        }
    }

    var count: Int { entries.count }
    subscript(_ piece: Int) -> (index: Int, start: Int, count: Int) { entries[piece] }
}
