import CShims

/// A rule whose state can take gradients in before the update, micro-batch by micro-batch: that of Adam (Zhang et al.,
/// arXiv 2305.19982).
///
/// With a single micro-batch it is the rule itself, to the last bit. With more, the second moment has the sum of their
/// squares in place of the square of their sum.
protocol MomentRule: UpdateRule {
    var beta1: Double { get }
    var beta2: Double { get }

    /// Those of an update, for a gradient that has been taken in.
    func options(_ update: Update) -> shims_adam

    /// Errors: `state` for a hyperparameter that does not allow it.
    func validateMoments() throws(GAError)
}

extension AdamW: MomentRule {
    func validateMoments() throws(GAError) {}
}

extension Adam: MomentRule {
    func validateMoments() throws(GAError) {
        guard weightDecay == 0 else {
            throw GAError(
                .state,
                "accumulate_into is moments, and adam adds weight_decay \(weightDecay) to the gradient of a whole window: use "
                    + "AdamW, or set it to 0")
        }
    }
}

extension Optimizer {
    /// Errors: `state` if a rule's state cannot take in gradients.
    func momentRule(_ rule: any UpdateRule) throws(GAError) -> any MomentRule {
        guard let rule = rule as? any MomentRule else {
            throw GAError(
                .state,
                "accumulate_into is moments, and \(type(of: rule).name) has none that could take gradients in: use Adam or "
                    + "AdamW, or accumulate into gradients")
        }
        try rule.validateMoments()
        return rule
    }

    /// Whether a window has begun in the state.
    var holdsPartOfWindow: Bool { isInMoments.contains(true) }

    /// Takes gradients times `scale` into the moments, which first move on if it is the first of the window.
    func takeIntoMoments(_ gradients: [UnsafePointer<Float>?], scale: Float) throws(GAError) {
        let rule = try momentRule(rule)
        let pieces = Pieces(zip(parameters, gradients).map { $1 == nil ? 0 : $0.elementCount })
        let (beta2, weight1, weight2) = (Float(rule.beta2), Float(1 - rule.beta1), Float(1 - rule.beta2))
        try pieces.forEach { [slots, isInMoments] index, start, count in
            var options = shims_moments(
                gradient_scale: scale, beta2: beta2, weight1: weight1, weight2: weight2,
                is_first: isInMoments[index] ? 0 : 1)
            Runtime.kernels.adam_take_in(
                gradients[index]! + start, slots[index][0].floats + start, slots[index][1].floats + start, &options,
                Int64(count))
        }
        for (index, gradient) in gradients.enumerated() where gradient != nil { self.isInMoments[index] = true }
    }

    /// Updates the parameters that gradients were taken in for, as ``apply(_:scales:learningRate:weight:loss:)`` does.
    ///
    /// One that is frozen keeps what its moments hold for the window in which it is not any more. Errors: those of the
    /// rules, and nothing has changed.
    func applyMoments(learningRate: Double, weight: Double, loss: Double) throws(GAError) {
        var rule = rule
        rule.learningRate = learningRate
        let updated = parameters.indices.filter { isInMoments[$0] && parameters[$0].requiresGrad }
        var options: [shims_adam] = []
        for index in updated {
            let own = if let group = groups.group(ofParameter: index) { try group.rule(rule) } else { rule }
            let update = Update(
                number: updateCounts[index] + 1, momentSteps: 1, momentTime: momentTimes[index] + 1, gradientScale: 1,
                parameters: [], workspace: UnsafeMutableBufferPointer(start: nil, count: 0))
            options.append(try momentRule(own).options(update))
        }
        let pieces = Pieces(updated.map { parameters[$0].elementCount })
        try pieces.forEach { [parameters, slots] place, start, count in
            let index = updated[place]
            withUnsafePointer(to: options[place]) {
                Runtime.kernels.adam_along_moments(
                    parameters[index].floats + start, slots[index][0].floats + start, slots[index][1].floats + start,
                    $0,
                    Int64(count))
            }
        }
        for index in updated {
            parameters[index].storage.noteWrite()
            isInMoments[index] = false
            updateCounts[index] += 1
            momentTimes[index] += 1
        }
        try noteUpdate(weight: weight, loss: loss)
    }
}
