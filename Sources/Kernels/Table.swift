import CShims

/// The kernels of this module, built for its instruction set.
public func makeKernelTable() -> shims_kernel_table {
    shims_kernel_table(
        binary: binary,
        binary_gradient: binaryGradient,
        unary: unary,
        unary_gradient: unaryGradient,
        add_scaled: addScaled,
        fill: fill,
        to_f32: toF32,
        from_f32: fromF32,
        sum_rows: sumRows,
        sum: sum,
        sum_of_squares: sumOfSquares,
        fold_sum_of_squares: foldSumOfSquares,
        clip_values: clipValues,
        squared_error: squaredError,
        scaled_difference: scaledDifference,
        dot_rows: dotRows,
        layer_norm: layerNorm,
        layer_norm_gradient: layerNormGradient,
        layer_norm_weight_gradient: layerNormWeightGradient,
        softmax: softmax,
        softmax_gradient: softmaxGradient,
        log_sum_exp: logSumExp,
        cross_entropy_gradient: crossEntropyGradient,
        attention_softmax: attentionSoftmax,
        attention_softmax_gradient: attentionSoftmaxGradient,
        matrix_product: matrixProduct,
        matrix_product_scratch: matrixProductScratch,
        sgd: sgd,
        adam: adam,
        nadam: nadam,
        adam_mean: adamMean,
        lion: lion)
}
