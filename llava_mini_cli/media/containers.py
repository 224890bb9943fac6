"""The containers that ffmpeg may open: what reads its own bytes, holds pictures in pixels, and ends.

ffmpeg knows 350 formats. Some of them are lists of other files, programs, or live sources, so a file is opened only if
the format that ffmpeg finds in it is named here (`-format_whitelist`). A name that an ffmpeg lacks does no harm.
Left out, each for its reason:

* what names or finds other files: dash, hls, imf, concat, image2 (patterns such as `a%d.png`), mlv (`a.M00` beside
  `a.MLV`), vobsub, webm_dash_manifest, dvdvideo, avisynth, vapoursynth; smooth streaming, sdp, rtsp, rtp and sap;
* what draws or runs a text: svg_pipe, lavfi, sbg, tty and its like (bin, adf, idf, xbin), xbm_pipe and xpm_pipe;
  ffmetadata, subtitles and lyrics hold no picture at all;
* what plays a score instead of pictures (libgme, libopenmpt, libmodplug), and devices;
* what has no signature and is taken for a medium by the end of its name alone: rawvideo, v210, v210x, bitpacked, cdg,
  pgmyuv_pipe, and raw sound.
"""

# "mov" and "matroska" stand for all their names ("mov,mp4,m4a,3gp,3g2,mj2"). MOV may name other files, too, where
# ffmpeg is told to follow (`enable_drefs`, `use_absolute_path`), which it is not: both are off unless they are set.
_FILMS = (
    "mov matroska avi asf asf_o flv live_flv kux mpeg mpegts mpegtsraw mpegvideo ogg mxf nut rm ivr dv "
    "yuv4mpegpipe ivf wtv ty gxf nsv nuv pva pmp swf lxf lvf vivo vividas film_cpk roq bink smk flic smush smjpeg "
    "4xm anm bethsoftvid bfi bmv c93 cdxl cine dfa dhav dsicin dxa ea filmstrip frm gdv hnm hxvs idcin ifv iff "
    "ingenient ipmovie iv8 jv lmlm4 luodat mm moflex mods msnwctcp mtv mv mvi mxg mpjpeg nc paf pdv psxstr r3d rl2 rpl "
    "ser sga siff simbiosis_imx thp tiertexseq tmv usm vc1test vmd wc3movie wsvqa xmv yop"
)
_RAW_FILMS = (  # streams without a container
    "apv av1 avs2 avs3 cavsvideo dirac dnxhd evc h261 h263 h264 hevc ipu m4v mjpeg mjpeg_2000 obu vc1 vvc"
)
_MOVING_PICTURES = "gif apng webp_anim jpegxl_anim"
_PICTURES = (  # those that Pillow does not read, or not all of; a "pipe" is one file, not a pattern of names
    "bmp_pipe cri_pipe dds_pipe dpx_pipe exr_pipe fits gem_pipe gif_pipe hdr_pipe ico j2k_pipe jpeg_pipe jpegls_pipe "
    "jpegxl_pipe jpegxs_pipe pam_pipe pbm_pipe pcx_pipe pfm_pipe pgm_pipe pgx_pipe phm_pipe photocd_pipe pictor_pipe "
    "png_pipe ppm_pipe psd_pipe qdraw_pipe qoi_pipe sgi_pipe sunrast_pipe tiff_pipe vbn_pipe webp_pipe xwd_pipe"
)
_SOUND = (  # so that a song is called one, and not an unknown format
    "aac ac3 ac4 aiff amr ape au caf dsf dts dtshd eac3 flac loas mlp mp3 mpc mpc8 oma tak truehd tta voc w64 wav wv"
)
WHITELIST = ",".join(f"{_FILMS} {_RAW_FILMS} {_MOVING_PICTURES} {_PICTURES} {_SOUND}".split())
