/* target.h - regions of code that may use more instructions than the base set. */
#ifndef TL_TARGET_H
#define TL_TARGET_H

/* Code between TL_TARGET_BEGIN and TL_TARGET_END may use more than the base instructions. */
#define TL_PRAGMA(x) _Pragma(#x)
#if defined(TL_SIMDE) // the instructions are those of the command line
#define TL_TARGET_BEGIN(features)
#define TL_TARGET_END
#elif defined(__clang__)
#define TL_TARGET_BEGIN(features)                                                                  \
    TL_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define TL_TARGET_END _Pragma("clang attribute pop")
#elif defined(__GNUC__)
#define TL_TARGET_BEGIN(features) _Pragma("GCC push_options") TL_PRAGMA(GCC target(features))
#define TL_TARGET_END _Pragma("GCC pop_options")
#else
#define TL_TARGET_BEGIN(features)
#define TL_TARGET_END
#endif

#endif
