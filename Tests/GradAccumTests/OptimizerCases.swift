import Foundation
import GradAccum

/// One row of the table: an optimizer, and its rule written down plainly in double.
struct OptimizerCase: Sendable {
    let name: String
    let make: @Sendable ([Tensor]) throws(GAError) -> Optimizer
    /// Updates one number: (parameter, gradient, state, update) with the update counting from 1.
    let reference: @Sendable (inout Double, Double, inout [Double], Int) -> Void

    static let all: [OptimizerCase] = [
        sgd("sgd", SGD(learningRate: 0.1)),
        sgd("sgd with weight decay", SGD(learningRate: 0.1, weightDecay: 0.05)),
        sgd("sgd with momentum", SGD(learningRate: 0.05, momentum: 0.9)),
        sgd("sgd with Nesterov momentum", SGD(learningRate: 0.05, momentum: 0.9, weightDecay: 0.01, nesterov: true)),
        OptimizerCase(
            name: "adam", make: { p throws(GAError) in try Optimizer(p, Adam(learningRate: 0.02, weightDecay: 0.1)) }
        ) {
            p, g, state, update in
            let moved = moments(g + 0.1 * p, &state, update, 0.9, 0.999, 1e-8)
            p -= 0.02 * moved
        },
        OptimizerCase(
            name: "adamw",
            make: { p throws(GAError) in
                try Optimizer(p, AdamW(learningRate: 0.02, beta1: 0.8, beta2: 0.95, weightDecay: 0.1))
            }
        ) { p, g, state, update in
            p *= 1 - 0.02 * 0.1
            p -= 0.02 * moments(g, &state, update, 0.8, 0.95, 1e-8)
        },
    ]

    private static func sgd(_ name: String, _ rule: SGD) -> OptimizerCase {
        OptimizerCase(name: name, make: { p throws(GAError) in try Optimizer(p, rule) }) { p, g, state, update in
            let gradient = g + rule.weightDecay * p
            state[0] = update == 1 ? gradient : rule.momentum * state[0] + gradient
            let moved = rule.momentum == 0 ? gradient : rule.nesterov ? gradient + rule.momentum * state[0] : state[0]
            p -= rule.learningRate * moved
        }
    }

    /// The direction of Adam, and its moments.
    private static func moments(
        _ g: Double, _ state: inout [Double], _ update: Int, _ beta1: Double, _ beta2: Double, _ eps: Double
    ) -> Double {
        state[0] = beta1 * state[0] + (1 - beta1) * g
        state[1] = beta2 * state[1] + (1 - beta2) * g * g
        let m = state[0] / (1 - pow(beta1, Double(update)))
        let v = state[1] / (1 - pow(beta2, Double(update)))
        return m / (v.squareRoot() + eps)
    }
}
