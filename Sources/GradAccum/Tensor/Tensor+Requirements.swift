import CShims

/// What operations ask of their operands, each with a sentence that names the operand.
extension Tensor {
    func require(_ wanted: DType, _ operation: StaticString, _ argument: StaticString) throws(GAError) {
        guard dtype == wanted else {
            let advice = dtype.isFloatingPoint ? ": cast it first" : ""
            throw GAError(.dtype, "\(operation): \(argument) is \(dtype), and \(wanted) is needed\(advice)")
        }
    }

    /// Errors: `dtype` unless this is of a floating type.
    func requireFloat(_ operation: StaticString, _ argument: StaticString) throws(GAError) {
        guard dtype.isFloatingPoint else {
            throw GAError(
                .dtype, "\(operation): \(argument) is \(dtype), and float32, bfloat16 or float16 is needed")
        }
    }

    func requireIndices(_ operation: StaticString, _ argument: StaticString) throws(GAError) {
        guard dtype == .int32 || dtype == .int64 else {
            throw GAError(.dtype, "\(operation): \(argument) is \(dtype), and int32 or int64 is needed")
        }
    }

    func require(shape wanted: [Int], _ operation: StaticString, _ argument: StaticString) throws(GAError) {
        guard shape == wanted else {
            throw GAError(.shape, "\(operation): \(argument) has shape \(shape), and \(wanted) is needed")
        }
    }

    func require(rank least: Int, _ operation: StaticString, _ argument: StaticString) throws(GAError) {
        guard rank >= least else {
            throw GAError(.shape, "\(operation): \(argument) has shape \(shape): at least \(least) axes are needed")
        }
    }

    /// The indices as contiguous Int64. Errors: `index` if one is not in `0 ..< limit` and is not `ignored`, which
    /// becomes -1.
    func indices(
        below limit: Int, ignoring ignored: Int64? = nil, _ operation: StaticString, _ argument: StaticString
    ) throws(GAError) -> Tensor {
        try requireIndices(operation, argument)
        let source = try packedData()
        let result = try Tensor(uninitialized: layout, .int64)
        let out = result.address.assumingMemoryBound(to: Int64.self)
        for i in 0..<elementCount {
            let value =
                dtype == .int64
                ? source.address.assumingMemoryBound(to: Int64.self)[i]
                : Int64(source.address.assumingMemoryBound(to: Int32.self)[i])
            if value == ignored {
                out[i] = -1
            } else if value >= 0 && value < limit {
                out[i] = value
            } else {
                throw GAError(
                    .index, "\(operation): \(argument) holds \(value) at position \(i), outside of 0 ... \(limit - 1)")
            }
        }
        return result
    }
}

extension DType {
    /// The storage format of a floating type, as the kernels name it.
    var format: shims_format {
        switch self {
        case .bfloat16: SHIMS_BF16
        case .float16: SHIMS_F16
        default: SHIMS_F32
        }
    }
}
