import GradAccum

/// A GPT-2 of test size: pre-norm blocks, learned positions, a head tied to the token embedding.
struct TinyGPT {
    let parameters: [Tensor]
    private let layers: Int
    private let channels: Int
    private let heads: Int
    private let time: Int

    init(vocabulary: Int, layers: Int, channels: Int, heads: Int, time: Int) throws {
        (self.layers, self.channels, self.heads, self.time) = (layers, channels, heads, time)
        let c = channels
        let block = [[c], [c], [3 * c, c], [3 * c], [c, c], [c], [c], [c], [4 * c, c], [4 * c], [c, 4 * c], [c]]
        let gains: Set = [0, 6]
        var all: [Tensor] = []
        func add(_ shape: [Int], gain: Bool = false) throws {
            let tensor = try Tensor.zeros(shape)
            if gain {
                try tensor.fill(1)
            } else {
                try tensor.fillNormal(standardDeviation: 0.1, seed: UInt64(all.count))
            }
            all.append(tensor)
        }
        try add([vocabulary, c])
        try add([time, c])
        for _ in 0..<layers {
            for (index, shape) in block.enumerated() { try add(shape, gain: gains.contains(index)) }
        }
        try add([c], gain: true)
        try add([c])
        parameters = all
    }

    /// The summed cross-entropy of samples of `time + 1` bytes each.
    func loss(_ text: [Int64], samples: Range<Int>, checkpointing: Bool = false) throws -> Tensor {
        let length = time + 1
        let inputs = samples.flatMap { text[($0 * length)..<($0 * length + time)] }
        let targets = samples.flatMap { text[($0 * length + 1)..<($0 * length + length)] }
        var x = try parameters[0].embedding(Tensor(indices: inputs, shape: [samples.count, time])) + parameters[1]
        for layer in 0..<layers {
            let block = { (inputs: [Tensor]) throws(GAError) in try self.block(layer, inputs[0]) }
            x = try checkpointing ? checkpoint([x], block) : block([x])
        }
        let end = parameters.count
        let logits = try x.layerNorm(parameters[end - 2], parameters[end - 1]).linear(parameters[0])
        return try logits.crossEntropy(Tensor(indices: targets, shape: [samples.count, time]))
    }

    private func block(_ layer: Int, _ x: Tensor) throws(GAError) -> Tensor {
        let p = Array(parameters[(2 + 12 * layer)..<(14 + 12 * layer)])
        let qkv = try x.layerNorm(p[0], p[1]).linear(p[2], p[3])
        let q = try qkv.sliced(axis: 2, 0..<channels)
        let k = try qkv.sliced(axis: 2, channels..<(2 * channels))
        let v = try qkv.sliced(axis: 2, (2 * channels)..<(3 * channels))
        let y = try x + q.causalAttention(k, v, heads: heads).linear(p[4], p[5])
        return try y + y.layerNorm(p[6], p[7]).linear(p[8], p[9]).gelu(.tanh).linear(p[10], p[11])
    }
}
