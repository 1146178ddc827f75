import CGradAccum
import GradAccum

@_cdecl("ga_sgd_create") @implementation
public func ga_sgd_create(
    _ out: UnsafeMutablePointer<OpaquePointer?>!, _ parameters: UnsafePointer<OpaquePointer?>!, _ count: Int64,
    _ given: UnsafePointer<ga_sgd_options>!
) -> ga_status {
    let defaults = SGD()
    return creating(
        out, parameters, count, given,
        or: ga_sgd_options(
            struct_size: 0, nesterov: 0, learning_rate: defaults.learningRate, momentum: defaults.momentum,
            weight_decay: defaults.weightDecay)
    ) { (chosen) throws(GAError) in
        SGD(
            learningRate: chosen.learning_rate, momentum: chosen.momentum, weightDecay: chosen.weight_decay,
            nesterov: try flag(chosen.nesterov, "nesterov"))
    }
}

@_cdecl("ga_adam_create") @implementation
public func ga_adam_create(
    _ out: UnsafeMutablePointer<OpaquePointer?>!, _ parameters: UnsafePointer<OpaquePointer?>!, _ count: Int64,
    _ given: UnsafePointer<ga_adam_options>!
) -> ga_status {
    let defaults = Adam()
    return creating(
        out, parameters, count, given,
        or: ga_adam_options(
            struct_size: 0, reserved: 0, learning_rate: defaults.learningRate, beta1: defaults.beta1,
            beta2: defaults.beta2, eps: defaults.eps, weight_decay: defaults.weightDecay)
    ) { (chosen) throws(GAError) in
        Adam(
            learningRate: chosen.learning_rate, beta1: chosen.beta1, beta2: chosen.beta2, eps: chosen.eps,
            weightDecay: chosen.weight_decay)
    }
}

@_cdecl("ga_adamw_create") @implementation
public func ga_adamw_create(
    _ out: UnsafeMutablePointer<OpaquePointer?>!, _ parameters: UnsafePointer<OpaquePointer?>!, _ count: Int64,
    _ given: UnsafePointer<ga_adamw_options>!
) -> ga_status {
    let defaults = AdamW()
    return creating(
        out, parameters, count, given,
        or: ga_adamw_options(
            struct_size: 0, reserved: 0, learning_rate: defaults.learningRate, beta1: defaults.beta1,
            beta2: defaults.beta2, eps: defaults.eps, weight_decay: defaults.weightDecay)
    ) { (chosen) throws(GAError) in
        AdamW(
            learningRate: chosen.learning_rate, beta1: chosen.beta1, beta2: chosen.beta2, eps: chosen.eps,
            weightDecay: chosen.weight_decay)
    }
}

@_cdecl("ga_radam_create") @implementation
public func ga_radam_create(
    _ out: UnsafeMutablePointer<OpaquePointer?>!, _ parameters: UnsafePointer<OpaquePointer?>!, _ count: Int64,
    _ given: UnsafePointer<ga_radam_options>!
) -> ga_status {
    let defaults = RAdam()
    return creating(
        out, parameters, count, given,
        or: ga_radam_options(
            struct_size: 0, decoupled_weight_decay: 0, learning_rate: defaults.learningRate, beta1: defaults.beta1,
            beta2: defaults.beta2, eps: defaults.eps, weight_decay: defaults.weightDecay)
    ) { (chosen) throws(GAError) in
        RAdam(
            learningRate: chosen.learning_rate, beta1: chosen.beta1, beta2: chosen.beta2, eps: chosen.eps,
            weightDecay: chosen.weight_decay,
            decoupledWeightDecay: try flag(chosen.decoupled_weight_decay, "decoupled_weight_decay"))
    }
}

@_cdecl("ga_nadam_create") @implementation
public func ga_nadam_create(
    _ out: UnsafeMutablePointer<OpaquePointer?>!, _ parameters: UnsafePointer<OpaquePointer?>!, _ count: Int64,
    _ given: UnsafePointer<ga_nadam_options>!
) -> ga_status {
    let defaults = NAdam()
    return creating(
        out, parameters, count, given,
        or: ga_nadam_options(
            struct_size: 0, decoupled_weight_decay: 0, learning_rate: defaults.learningRate, beta1: defaults.beta1,
            beta2: defaults.beta2, eps: defaults.eps, weight_decay: defaults.weightDecay,
            momentum_decay: defaults.momentumDecay)
    ) { (chosen) throws(GAError) in
        NAdam(
            learningRate: chosen.learning_rate, beta1: chosen.beta1, beta2: chosen.beta2, eps: chosen.eps,
            weightDecay: chosen.weight_decay, momentumDecay: chosen.momentum_decay,
            decoupledWeightDecay: try flag(chosen.decoupled_weight_decay, "decoupled_weight_decay"))
    }
}

@_cdecl("ga_lion_create") @implementation
public func ga_lion_create(
    _ out: UnsafeMutablePointer<OpaquePointer?>!, _ parameters: UnsafePointer<OpaquePointer?>!, _ count: Int64,
    _ given: UnsafePointer<ga_lion_options>!
) -> ga_status {
    let defaults = Lion()
    return creating(
        out, parameters, count, given,
        or: ga_lion_options(
            struct_size: 0, reserved: 0, learning_rate: defaults.learningRate, beta1: defaults.beta1,
            beta2: defaults.beta2, weight_decay: defaults.weightDecay)
    ) { (chosen) throws(GAError) in
        Lion(
            learningRate: chosen.learning_rate, beta1: chosen.beta1, beta2: chosen.beta2,
            weightDecay: chosen.weight_decay)
    }
}

@_cdecl("ga_lamb_create") @implementation
public func ga_lamb_create(
    _ out: UnsafeMutablePointer<OpaquePointer?>!, _ parameters: UnsafePointer<OpaquePointer?>!, _ count: Int64,
    _ given: UnsafePointer<ga_lamb_options>!
) -> ga_status {
    let defaults = LAMB()
    return creating(
        out, parameters, count, given,
        or: ga_lamb_options(
            struct_size: 0, reserved: 0, learning_rate: defaults.learningRate, beta1: defaults.beta1,
            beta2: defaults.beta2, eps: defaults.eps, weight_decay: defaults.weightDecay)
    ) { (chosen) throws(GAError) in
        LAMB(
            learningRate: chosen.learning_rate, beta1: chosen.beta1, beta2: chosen.beta2, eps: chosen.eps,
            weightDecay: chosen.weight_decay)
    }
}

@_cdecl("ga_lars_create") @implementation
public func ga_lars_create(
    _ out: UnsafeMutablePointer<OpaquePointer?>!, _ parameters: UnsafePointer<OpaquePointer?>!, _ count: Int64,
    _ given: UnsafePointer<ga_lars_options>!
) -> ga_status {
    let defaults = LARS()
    return creating(
        out, parameters, count, given,
        or: ga_lars_options(
            struct_size: 0, reserved: 0, learning_rate: defaults.learningRate, momentum: defaults.momentum,
            weight_decay: defaults.weightDecay, trust_coefficient: defaults.trustCoefficient)
    ) { (chosen) throws(GAError) in
        LARS(
            learningRate: chosen.learning_rate, momentum: chosen.momentum, weightDecay: chosen.weight_decay,
            trustCoefficient: chosen.trust_coefficient)
    }
}

@_cdecl("ga_adafactor_create") @implementation
public func ga_adafactor_create(
    _ out: UnsafeMutablePointer<OpaquePointer?>!, _ parameters: UnsafePointer<OpaquePointer?>!, _ count: Int64,
    _ given: UnsafePointer<ga_adafactor_options>!
) -> ga_status {
    let defaults = Adafactor()
    return creating(
        out, parameters, count, given,
        or: ga_adafactor_options(
            struct_size: 0, reserved: 0, learning_rate: defaults.learningRate, beta2_decay: defaults.beta2Decay,
            eps1: defaults.eps1, eps2: defaults.eps2, clipping_threshold: defaults.clippingThreshold,
            weight_decay: defaults.weightDecay)
    ) { (chosen) throws(GAError) in
        Adafactor(
            learningRate: chosen.learning_rate, beta2Decay: chosen.beta2_decay, eps1: chosen.eps1, eps2: chosen.eps2,
            clippingThreshold: chosen.clipping_threshold, weightDecay: chosen.weight_decay)
    }
}

@_cdecl("ga_muon_create") @implementation
public func ga_muon_create(
    _ out: UnsafeMutablePointer<OpaquePointer?>!, _ parameters: UnsafePointer<OpaquePointer?>!, _ count: Int64,
    _ given: UnsafePointer<ga_muon_options>!
) -> ga_status {
    let defaults = Muon()
    return creating(
        out, parameters, count, given,
        or: ga_muon_options(
            struct_size: 0, nesterov: defaults.nesterov ? 1 : 0, learning_rate: defaults.learningRate,
            weight_decay: defaults.weightDecay, momentum: defaults.momentum,
            ns_coefficient_a: defaults.coefficients.a, ns_coefficient_b: defaults.coefficients.b,
            ns_coefficient_c: defaults.coefficients.c, eps: defaults.eps, ns_steps: Int32(defaults.iterations),
            adjust_lr: defaults.adjustment.rawValue, adamw_learning_rate_ratio: defaults.adamWLearningRateRatio,
            adamw_beta1: defaults.adamWBeta1, adamw_beta2: defaults.adamWBeta2, adamw_eps: defaults.adamWEps,
            adamw_weight_decay: defaults.adamWWeightDecay, adamw_parameters: nil, adamw_parameter_count: 0)
    ) { (chosen) throws(GAError) in
        let places = try array(
            chosen.adamw_parameters, chosen.adamw_parameter_count, "adamw_parameters",
            countedBy: "adamw_parameter_count")
        for place in places where place < 0 || place >= count {
            throw GAError(
                .index, "adamw_parameters holds \(place), which is outside of 0 ... \(count - 1): the parameters")
        }
        return Muon(
            learningRate: chosen.learning_rate, weightDecay: chosen.weight_decay, momentum: chosen.momentum,
            nesterov: try flag(chosen.nesterov, "nesterov"),
            coefficients: (chosen.ns_coefficient_a, chosen.ns_coefficient_b, chosen.ns_coefficient_c),
            eps: chosen.eps, iterations: Int(chosen.ns_steps), adjustment: try constant(chosen.adjust_lr, "adjust_lr"),
            adamWLearningRateRatio: chosen.adamw_learning_rate_ratio, adamWBeta1: chosen.adamw_beta1,
            adamWBeta2: chosen.adamw_beta2, adamWEps: chosen.adamw_eps, adamWWeightDecay: chosen.adamw_weight_decay,
            adamWParameters: Set(places.map { Int($0) }))
    }
}

@_cdecl("ga_adamw8bit_create") @implementation
public func ga_adamw8bit_create(
    _ out: UnsafeMutablePointer<OpaquePointer?>!, _ parameters: UnsafePointer<OpaquePointer?>!, _ count: Int64,
    _ given: UnsafePointer<ga_adamw8bit_options>!
) -> ga_status {
    let defaults = AdamW8bit()
    return creating(
        out, parameters, count, given,
        or: ga_adamw8bit_options(
            struct_size: 0, reserved: 0, learning_rate: defaults.learningRate, beta1: defaults.beta1,
            beta2: defaults.beta2, eps: defaults.eps, weight_decay: defaults.weightDecay,
            min_8bit_size: Int64(defaults.minimumSize))
    ) { (chosen) throws(GAError) in
        AdamW8bit(
            learningRate: chosen.learning_rate, beta1: chosen.beta1, beta2: chosen.beta2, eps: chosen.eps,
            weightDecay: chosen.weight_decay, minimumSize: Int(chosen.min_8bit_size))
    }
}

@_cdecl("ga_custom_create") @implementation
public func ga_custom_create(
    _ out: UnsafeMutablePointer<OpaquePointer?>!, _ parameters: UnsafePointer<OpaquePointer?>!, _ count: Int64,
    _ update: ga_update_fn!, _ user: UnsafeMutableRawPointer!,
    _ release: (@convention(c) (UnsafeMutableRawPointer?) -> Void)!, _ given: UnsafePointer<ga_custom_options>!
) -> ga_status {
    let user = ForeignUser(user, release)
    let status = creating(
        out, parameters, count, given,
        or: ga_custom_options(struct_size: 0, elementwise: 0, learning_rate: 1e-3, slot_count: 0, weight_decay: 0)
    ) { (chosen) throws(GAError) in
        let update = try required(update, "update")
        guard (0...ForeignRule.mostSlots).contains(chosen.slot_count) else {
            throw GAError(
                .invalidArgument,
                "custom: slot_count is \(chosen.slot_count): it must be in 0 ... \(ForeignRule.mostSlots)")
        }
        return ForeignRule(
            learningRate: chosen.learning_rate, weightDecay: chosen.weight_decay, slotCount: Int(chosen.slot_count),
            isElementwise: try flag(chosen.elementwise, "elementwise"), function: update, user: user)
    }
    user.isOwned = status == GA_OK
    return status
}

@_cdecl("ga_optimizer_free") @implementation
public func ga_optimizer_free(_ optimizer: OpaquePointer!) {
    freeHandle(optimizer, .optimizer)
}

@_cdecl("ga_optimizer_set_learning_rate") @implementation
public func ga_optimizer_set_learning_rate(_ handle: OpaquePointer!, _ learning_rate: Double) -> ga_status {
    guarded { () throws(GAError) in try optimizer(handle).setLearningRate(learning_rate) }
}

@_cdecl("ga_optimizer_learning_rate") @implementation
public func ga_optimizer_learning_rate(_ handle: OpaquePointer!, _ out: UnsafeMutablePointer<Double>!) -> ga_status {
    guarded { () throws(GAError) in
        let optimizer = try optimizer(handle)
        try required(out, "out").pointee = optimizer.learningRate
    }
}

@_cdecl("ga_optimizer_add_group") @implementation
public func ga_optimizer_add_group(
    _ handle: OpaquePointer!, _ parameters: UnsafePointer<OpaquePointer?>!, _ count: Int64,
    _ given: UnsafePointer<ga_group_options>!, _ out: UnsafeMutablePointer<Int64>!
) -> ga_status {
    guarded { () throws(GAError) in
        let optimizer = try optimizer(handle)
        let out = try required(out, "out")
        let group = try group(given)
        out.pointee = Int64(try optimizer.addGroup(try tensors(parameters, count, "parameters"), group))
    }
}

@_cdecl("ga_optimizer_set_group") @implementation
public func ga_optimizer_set_group(
    _ handle: OpaquePointer!, _ number: Int64, _ given: UnsafePointer<ga_group_options>!
) -> ga_status {
    guarded { () throws(GAError) in try optimizer(handle).setGroup(Int(number), try group(given)) }
}

@_cdecl("ga_optimizer_group") @implementation
public func ga_optimizer_group(
    _ handle: OpaquePointer!, _ number: Int64, _ out: UnsafeMutablePointer<ga_group_options>!
) -> ga_status {
    guarded { () throws(GAError) in
        let optimizer = try optimizer(handle)
        let out = try required(out, "out")
        try store(groupOptions(try optimizer.group(Int(number))), to: out)
    }
}

@_cdecl("ga_optimizer_group_count") @implementation
public func ga_optimizer_group_count(_ handle: OpaquePointer!, _ out: UnsafeMutablePointer<Int64>!) -> ga_status {
    guarded { () throws(GAError) in
        let optimizer = try optimizer(handle)
        try required(out, "out").pointee = Int64(optimizer.groupCount)
    }
}

/// In the header, a weight decay of the rule is a negative one, and no limit is 0.
private func group(_ given: UnsafePointer<ga_group_options>?) throws(GAError) -> ParameterGroup {
    let chosen = try options(given, or: groupOptions(ParameterGroup()))
    return ParameterGroup(
        learningRateScale: chosen.learning_rate_scale, weightDecay: chosen.weight_decay < 0 ? nil : chosen.weight_decay,
        maxGradNorm: chosen.max_grad_norm == 0 ? nil : chosen.max_grad_norm)
}

private func groupOptions(_ group: ParameterGroup) -> ga_group_options {
    ga_group_options(
        struct_size: 0, reserved: 0, learning_rate_scale: group.learningRateScale,
        weight_decay: group.weightDecay ?? -1, max_grad_norm: group.maxGradNorm ?? 0)
}

func optimizer(_ handle: OpaquePointer?) throws(GAError) -> Optimizer {
    try borrow(handle, .optimizer, "optimizer")
}

/// Creates an optimizer with the rule that the chosen options make.
private func creating<Options, Rule: UpdateRule>(
    _ out: UnsafeMutablePointer<OpaquePointer?>?, _ parameters: UnsafePointer<OpaquePointer?>?, _ count: Int64,
    _ given: UnsafePointer<Options>?, or defaults: Options, _ rule: (Options) throws(GAError) -> Rule
) -> ga_status {
    guarded { () throws(GAError) in
        let out = try required(out, "out")
        let rule = try rule(try options(given, or: defaults))
        let optimizer = try Optimizer(try tensors(parameters, count, "parameters"), rule)
        out.pointee = try HandleTable.shared.insert(optimizer, .optimizer)
    }
}
