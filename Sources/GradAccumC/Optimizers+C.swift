import CGradAccum
import GradAccum

@_cdecl("ga_sgd_create") @implementation
public func ga_sgd_create(
    _ out: UnsafeMutablePointer<OpaquePointer?>!, _ parameters: UnsafePointer<OpaquePointer?>!, _ count: Int64,
    _ given: UnsafePointer<ga_sgd_options>!
) -> ga_status {
    creating(out) { () throws(GAError) in
        let defaults = SGD()
        let chosen = try options(
            given,
            or: ga_sgd_options(
                struct_size: 0, nesterov: 0, learning_rate: defaults.learningRate, momentum: defaults.momentum,
                weight_decay: defaults.weightDecay))
        return try Optimizer(
            try tensors(parameters, count, "parameters"),
            SGD(
                learningRate: chosen.learning_rate, momentum: chosen.momentum, weightDecay: chosen.weight_decay,
                nesterov: try flag(chosen.nesterov, "nesterov")))
    }
}

@_cdecl("ga_adam_create") @implementation
public func ga_adam_create(
    _ out: UnsafeMutablePointer<OpaquePointer?>!, _ parameters: UnsafePointer<OpaquePointer?>!, _ count: Int64,
    _ given: UnsafePointer<ga_adam_options>!
) -> ga_status {
    creating(out) { () throws(GAError) in
        let defaults = Adam()
        let chosen = try options(
            given,
            or: ga_adam_options(
                struct_size: 0, reserved: 0, learning_rate: defaults.learningRate, beta1: defaults.beta1,
                beta2: defaults.beta2, eps: defaults.eps, weight_decay: defaults.weightDecay))
        return try Optimizer(
            try tensors(parameters, count, "parameters"),
            Adam(
                learningRate: chosen.learning_rate, beta1: chosen.beta1, beta2: chosen.beta2, eps: chosen.eps,
                weightDecay: chosen.weight_decay))
    }
}

@_cdecl("ga_adamw_create") @implementation
public func ga_adamw_create(
    _ out: UnsafeMutablePointer<OpaquePointer?>!, _ parameters: UnsafePointer<OpaquePointer?>!, _ count: Int64,
    _ given: UnsafePointer<ga_adamw_options>!
) -> ga_status {
    creating(out) { () throws(GAError) in
        let defaults = AdamW()
        let chosen = try options(
            given,
            or: ga_adamw_options(
                struct_size: 0, reserved: 0, learning_rate: defaults.learningRate, beta1: defaults.beta1,
                beta2: defaults.beta2, eps: defaults.eps, weight_decay: defaults.weightDecay))
        return try Optimizer(
            try tensors(parameters, count, "parameters"),
            AdamW(
                learningRate: chosen.learning_rate, beta1: chosen.beta1, beta2: chosen.beta2, eps: chosen.eps,
                weightDecay: chosen.weight_decay))
    }
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

func optimizer(_ handle: OpaquePointer?) throws(GAError) -> Optimizer {
    try borrow(handle, .optimizer, "optimizer")
}

private func creating(
    _ out: UnsafeMutablePointer<OpaquePointer?>?, _ body: () throws(GAError) -> Optimizer
) -> ga_status {
    guarded { () throws(GAError) in
        let out = try required(out, "out")
        out.pointee = try HandleTable.shared.insert(try body(), .optimizer)
    }
}
