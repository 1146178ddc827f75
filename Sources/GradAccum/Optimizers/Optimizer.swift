/// A set of parameters and the rule that updates them. An ``Accumulator`` decides when.
public final class Optimizer {
    public let parameters: [Tensor]
    /// The one clock of schedules.
    var progress = Progress()
    private(set) var rule: any UpdateRule
    var groups: ParameterGroups
    /// Per parameter, the updates that it had part in, and their ``Update/momentSteps``: the clock of its state.
    var updateCounts: [Int]
    var momentTimes: [Double]
    /// Per parameter, whether its moments hold gradients of a window that has had no update: see ``MomentRule``.
    var isInMoments: [Bool]
    /// Per parameter, the arrays that the rule keeps.
    let slots: [[SlotMemory]]
    private let workspace: Tensor
    private var isUpdating = false
    /// What moves with each update.
    var averages: [WeightAverage.Reference] = []
    var hasAverageSwappedIn = false
    weak var accumulator: Accumulator?

    /// Different contiguous float32 leaves, none of another optimizer; they become parameters if they were not.
    ///
    /// The rule is one of the library's or the caller's own. Errors: those of its hyperparameters; `state`, `dtype` or
    /// `shape` for a tensor that cannot be a parameter; `outOfMemory`.
    public init(_ parameters: [Tensor], _ rule: some UpdateRule) throws(GAError) {
        try rule.validate()
        try Optimizer.check(parameters)
        var slots: [[SlotMemory]] = []
        for (index, parameter) in parameters.enumerated() {
            var own: [SlotMemory] = []
            for slot in rule.slots(ofParameter: index, shape: parameter.shape) { own.append(try SlotMemory(slot)) }
            slots.append(own)
        }
        workspace = try Tensor(
            uninitialized: [rule.workspace(shapes: parameters.map(\.shape))], for: "optimizer", lifetime: .training)
        groups = ParameterGroups(parameterCount: parameters.count)
        updateCounts = parameters.map { _ in 0 }
        momentTimes = parameters.map { _ in 0 }
        isInMoments = parameters.map { _ in false }
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
            try parameter.requireWritable("optimizer: parameters[\(index)]")
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

    /// Updates applied so far.
    public var updateCount: Int { progress.updates }

    /// Sets what a schedule multiplies; without one, the learning rate of the next update.
    ///
    /// Errors: `invalidArgument` unless it is finite and at least 0.
    public func setLearningRate(_ value: Double) throws(GAError) {
        var new = rule
        new.learningRate = value
        try new.validate()
        for group in groups.all { _ = try group.rule(new) }
        rule = new
    }

    /// As it was set; see ``nextLearningRate(weight:)`` for what a schedule makes of it.
    public var learningRate: Double { rule.learningRate }

    /// The names, types and shapes of the state of parameter `index`.
    public func slots(ofParameter index: Int) -> [Slot] { slots[index].map(\.slot) }

    /// Updates the parameters that have a gradient, `gradients[i]` scaled by `scales[i]`, and moves the clock by an update
    /// of a window's weight and mean loss. The learning rate is ``nextLearningRate(weight:)``. `rounded`: the gradients, where
    /// they are in bfloat16.
    ///
    /// All others keep their values, their state and the clock of it. Errors: those of the rule, and the update is not
    /// counted then; `state` from within an update, which only a rule of the caller can be.
    func apply(
        _ gradients: [Tensor?], _ rounded: RoundedGradients? = nil, scales: [Float], learningRate: Double,
        weight: Double,
        loss: Double
    ) throws(GAError) {
        try requireNoUpdate("step")
        isUpdating = true
        defer { isUpdating = false }
        // A copy: the caller's rule may set the learning rate of the next update.
        var rule = rule
        rule.learningRate = learningRate
        var ruleOfGroup: [Int?: any UpdateRule] = [nil: rule]
        for (number, group) in groups.all.enumerated() { ruleOfGroup[number] = try group.rule(rule) }
        let momentSteps = progress.momentSteps(weight: weight)
        let parts = parts(
            parameters.indices.map { gradientAddress($0, gradients, rounded) }, scales, momentSteps: momentSteps)
        for (part, updated) in parts {
            let rule = ruleOfGroup[part.group]!
            let update = Update(
                number: part.number, momentSteps: momentSteps, momentTime: part.momentTime, gradientScale: part.scale,
                parameters: updated,
                workspace: UnsafeMutableBufferPointer(start: workspace.floats, count: workspace.elementCount))
            if let rounded {
                try rounded.forEachPart(of: update, isElementwise: rule is any ElementwiseRule, rule.apply)
            } else {
                try rule.apply(update)
            }
        }
        for (_, updated) in parts {
            for parameter in updated {
                updateCounts[parameter.index] += 1
                momentTimes[parameter.index] += momentSteps
            }
        }
        try noteUpdate(weight: weight, loss: loss)
    }

    /// Moves the clock, and what moves with it.
    func noteUpdate(weight: Double, loss: Double) throws(GAError) {
        progress.advance(weight: weight, loss: loss)
        for reference in averages { try reference.average?.advance(weight: weight) }
    }

    /// Parameters that a rule can update together.
    private struct Part: Hashable {
        let group: Int?
        /// Of their update.
        let number: Int
        let momentTime: Double
        let scale: Float
    }

    /// Where a gradient lies, or is to lie; nil for none.
    private func gradientAddress(
        _ index: Int, _ gradients: [Tensor?], _ rounded: RoundedGradients?
    ) -> UnsafePointer<Float>? {
        if let rounded { return rounded.sums[index].map { _ in UnsafePointer(rounded.workspace.floats) } }
        return gradients[index].map { UnsafePointer($0.floats) }
    }

    /// The parameters that have a gradient, in parts, each in their order.
    private func parts(
        _ gradients: [UnsafePointer<Float>?], _ scales: [Float], momentSteps: Double
    ) -> [(Part, [Update.Parameter])] {
        var parts: [(Part, [Update.Parameter])] = []
        var places: [Part: Int] = [:]
        for (index, parameter) in parameters.enumerated() {
            guard let gradient = gradients[index] else { continue }
            let part = Part(
                group: groups.ofParameter[index], number: updateCounts[index] + 1,
                momentTime: momentTimes[index] + momentSteps, scale: scales[index])
            let place = places[part] ?? parts.count
            if place == parts.count {
                places[part] = place
                parts.append((part, []))
            }
            parameter.storage.noteWrite()
            parts[place].1.append(
                Update.Parameter(
                    index: index, shape: parameter.shape, count: parameter.elementCount, values: parameter.floats,
                    gradient: gradient, slots: slots[index].map(\.storage.address)))
        }
        return parts
    }

    /// Errors: `state` from within an update or an accumulate, which only a callback of the caller can be.
    func requireIdle(_ operation: StaticString) throws(GAError) {
        try requireNoUpdate(operation)
        try accumulator?.requireIdle(operation)
    }

    private func requireNoUpdate(_ operation: StaticString) throws(GAError) {
        guard !isUpdating else {
            throw GAError(.state, "\(operation): this optimizer is in the middle of an update: call it afterwards")
        }
    }
}
