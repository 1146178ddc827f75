import GradAccum

/// Gradients of one update, the same for every caller.
func randomGradients(_ shapes: [[Int]], update: Int, scale: Float = 1) -> [[Float]] {
    var generator = SplitMix64(UInt64(100 + update))
    return shapes.map { shape in
        (0..<shape.reduce(1, *)).map { _ in scale * Float.random(in: -1...1, using: &generator) }
    }
}

/// Parameters that are the same for every caller.
func randomParameters(_ shapes: [[Int]]) throws -> [Tensor] {
    try shapes.enumerated().map { index, shape in
        let tensor = try Tensor.zeros(shape)
        try tensor.fillUniform(low: -1, high: 1, seed: UInt64(index))
        return tensor
    }
}

/// Accumulates a micro-batch of gradients, nil for a parameter that it does not touch.
func add(_ values: [[Float]?], to accumulator: Accumulator, weight: Double) throws {
    let buffers = values.map { $0.map { UnsafeMutableBufferPointer<Float>.allocate(capacity: $0.count) } }
    defer { for buffer in buffers { buffer?.deallocate() } }
    for (buffer, value) in zip(buffers, values) { _ = buffer?.initialize(from: value!) }
    try accumulator.accumulate(
        gradients: buffers.map { $0.map { UnsafeRawPointer($0.baseAddress!) } }, loss: 0, weight: weight)
}

func bits(of tensors: [Tensor]) throws -> [[UInt32]] {
    try tensors.map { try $0.values().map(\.bitPattern) }
}
