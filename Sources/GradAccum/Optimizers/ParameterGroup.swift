/// What some parameters of an optimizer have of their own.
public struct ParameterGroup: Sendable, Equatable {
    /// What the optimizer's learning rate is multiplied by, so that one rate, or one schedule, drives all groups.
    public var learningRateScale: Double
    /// nil for the rule's own.
    public var weightDecay: Double?
    /// The largest norm of the mean gradient of these parameters, which then have no part in what the accumulator clips;
    /// nil leaves them there.
    public var maxGradNorm: Double?

    public init(learningRateScale: Double = 1, weightDecay: Double? = nil, maxGradNorm: Double? = nil) {
        self.learningRateScale = learningRateScale
        self.weightDecay = weightDecay
        self.maxGradNorm = maxGradNorm
    }

    func validate() throws(GAError) {
        guard learningRateScale.isFinite && learningRateScale >= 0 else {
            throw GAError(
                .invalidArgument,
                "group: learning_rate_scale is \(learningRateScale): it must be finite and at least 0")
        }
        if let maxGradNorm, !maxGradNorm.isFinite || maxGradNorm <= 0 {
            throw GAError(
                .invalidArgument, "group: max_grad_norm is \(maxGradNorm): it must be finite and above 0, or 0 for none"
            )
        }
    }

    /// The rule for these parameters. Errors: those of its hyperparameters.
    func rule(_ rule: any UpdateRule) throws(GAError) -> any UpdateRule {
        var own = rule
        own.learningRate *= learningRateScale
        if let weightDecay { own.setWeightDecay(weightDecay) }
        do {
            try own.validate()
        } catch {
            throw GAError(
                error.kind,
                "group: learning_rate_scale \(learningRateScale) and weight_decay \(weightDecay ?? rule.weightDecay): "
                    + error.message)
        }
        return own
    }
}

/// The groups of an optimizer's parameters.
struct ParameterGroups {
    private(set) var all: [ParameterGroup] = []
    /// Per parameter, the number of its group; nil for none.
    private(set) var ofParameter: [Int?]

    init(parameterCount: Int) { ofParameter = Array(repeating: nil, count: parameterCount) }

    mutating func append(_ group: ParameterGroup, _ members: [Int]) -> Int {
        all.append(group)
        for index in members { ofParameter[index] = all.count - 1 }
        return all.count - 1
    }

    mutating func replace(_ number: Int, by group: ParameterGroup) { all[number] = group }

    func group(ofParameter index: Int) -> ParameterGroup? { ofParameter[index].map { all[$0] } }

    /// Errors: `index` if there is no such group.
    func require(_ number: Int) throws(GAError) {
        guard all.indices.contains(number) else {
            throw GAError(
                .index,
                all.isEmpty
                    ? "group is \(number), but the optimizer has no groups: add one first"
                    : "group is \(number), outside of 0 ... \(all.count - 1)")
        }
    }
}

extension Optimizer {
    /// The number of groups, which count from 0.
    public var groupCount: Int { groups.all.count }

    /// Makes a group of parameters that are in none, and returns its number.
    ///
    /// Errors: `invalidArgument` for no parameter, one that is not this optimizer's, one twice, or an option outside of its
    /// range; `state` if one is in a group.
    @discardableResult
    public func addGroup(_ parameters: [Tensor], _ group: ParameterGroup) throws(GAError) -> Int {
        guard !parameters.isEmpty else {
            throw GAError(.invalidArgument, "group: parameters is empty: it needs at least one")
        }
        var members: [Int] = []
        for (position, parameter) in parameters.enumerated() {
            guard parameter.owner === self else {
                throw GAError(
                    .invalidArgument,
                    "group: parameters[\(position)] is no parameter of this optimizer: create it with it")
            }
            let index = parameter.indexInOwner
            if let earlier = members.firstIndex(of: index) {
                throw GAError(
                    .invalidArgument,
                    "group: parameters[\(earlier)] and parameters[\(position)] are the same: pass it once")
            }
            if let other = groups.ofParameter[index] {
                throw GAError(
                    .state, "group: parameters[\(position)] is in group \(other): a parameter is in one group at most")
            }
            members.append(index)
        }
        try require(group)
        return groups.append(group, members)
    }

    /// Errors: `index` if there is no such group.
    public func group(_ number: Int) throws(GAError) -> ParameterGroup {
        try groups.require(number)
        return groups.all[number]
    }

    /// Changes a group from the next update on. Errors: `index`; `invalidArgument` for an option outside of its range.
    public func setGroup(_ number: Int, _ group: ParameterGroup) throws(GAError) {
        try groups.require(number)
        try require(group)
        groups.replace(number, by: group)
    }

    private func require(_ group: ParameterGroup) throws(GAError) {
        try group.validate()
        _ = try group.rule(rule)
    }
}
