import GradAccum
import XCTest

/// The loss scaler as a Swift program uses it. (Every path of its state machine is compared with a model through C, in
/// Tests/python/test_loss_scaler.py.)
final class LossScalerTests: XCTestCase {
    private struct Model {
        let parameter: Tensor
        let accumulator: Accumulator

        init(_ scaler: LossScaler?) throws {
            parameter = try Tensor([1, -2, 3], shape: [3])
            try parameter.setRequiresGrad(true)
            accumulator = try Accumulator(Optimizer([parameter], AdamW(learningRate: 0.1)), .init(maxGradNorm: 0.5))
            try accumulator.setLossScaler(scaler)
        }

        func add(_ values: [Float]) throws {
            try accumulator.accumulate((parameter * Tensor(values, shape: [3])).sum(), weight: 2)
        }
    }

    func testAScaleChangesNoBitAndNoNumberOfAReport() throws {
        let (plain, scaled) = (try Model(nil), try Model(LossScaler()))
        for update in 1...3 {
            for model in [plain, scaled] {
                try model.add([Float(update), 2, -1])
                try model.add([0.5, -Float(update), 1])
            }
            let (expected, report) = (try plain.accumulator.step(), try scaled.accumulator.step())
            XCTAssertEqual(report.lossScale, 65536)
            XCTAssertEqual(report.gradientNorm, expected.gradientNorm)
            XCTAssertEqual(report.loss, expected.loss)
            XCTAssertEqual(try scaled.parameter.values(), try plain.parameter.values())
        }
    }

    func testAnOverflowLowersTheScaleAndTheWindowIsComputedAgain() throws {
        let scaler = try LossScaler(.init(initScale: 0x1p20))
        let (plain, model) = (try Model(nil), try Model(scaler))
        let values: [Float] = [1, 0x1p109, 3]
        var scales: [Double] = []
        let accumulator = model.accumulator
        accumulator.retryHandler = { [unowned accumulator, parameter = model.parameter] report throws(GAError) in
            scales.append(report.lossScale)
            XCTAssertEqual(report.outcome, .skippedOverflow)
            try accumulator.accumulate((parameter * Tensor(values, shape: [3])).sum(), weight: 2)
            return true
        }
        for model in [plain, model] { try model.add(values) }
        let report = try accumulator.step()
        XCTAssertEqual(scales, [0x1p20, 0x1p19])
        XCTAssertEqual(report.outcome, .applied)
        XCTAssertEqual(report.retries, 2)
        XCTAssertEqual(report.gradientNorm, try plain.accumulator.step().gradientNorm)
        XCTAssertEqual(try model.parameter.values(), try plain.parameter.values())
        XCTAssertEqual(scaler.scale, 0x1p18)
    }

    func testTheNormBeforeTheStepEndsTheAdditions() throws {
        let model = try Model(LossScaler())
        try model.add([3, 4, 0])
        XCTAssertEqual(try model.accumulator.unscale(), 2.5)
        assertThrows(.state, naming: "unscaled before") { _ = try model.accumulator.unscale() }
        assertThrows(.state, naming: "nothing more can be added") { try model.add([1, 1, 1]) }
        XCTAssertEqual(try model.accumulator.accumulatedGradient(0).values(), [3, 4, 0])
        XCTAssertEqual(try model.accumulator.step().gradientNorm, 2.5)
    }

    func testOwnGradientsAreUnscaledOncePerRound() throws {
        let scaler = try LossScaler(.init(growthInterval: 1))
        var values: [Float] = [3 * 65536, 4 * 65536]
        try values.withUnsafeMutableBytes { bytes in
            let gradient = [(bytes.baseAddress, 2)]
            XCTAssertEqual(try scaler.unscale(gradient, scale: scaler.scale), 5)
            assertThrows(.state, naming: "optimizer 0") { _ = try scaler.unscale(gradient, scale: scaler.scale) }
        }
        XCTAssertEqual(values, [3, 4])
        try scaler.update()
        XCTAssertEqual(scaler.scale, 131072)
        assertThrows(.state, naming: "nothing was unscaled") { try scaler.update() }
        let other = try LossScaler(.init(growthInterval: 1))
        try other.setState(scaler.state)
        XCTAssertEqual(try other.state, try scaler.state)
        assertThrows(.state, naming: "loss_scaler_update") {
            var one: Float = 1
            _ = try scaler.unscale([(.init(&one), 1)], scale: 1)
            _ = try scaler.state
        }
        assertThrows(.state, naming: "loss_scaler_update") { try scaler.setState(try other.state) }
    }
}
